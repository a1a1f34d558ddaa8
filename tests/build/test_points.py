"""Operating points: five names from the cheapest to all open, each with what it was measured to cost and to answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevit.backends import backend
from edgevit.backends.reference import reference
from edgevit.backends.targets import load_target
from edgevit.build import crew as crews
from edgevit.build import points as measuring
from edgevit.build.case import Case
from edgevit.build.points import GRID, Points, _between, measure_points
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.points import NAMES, OperatingPoint
from tests.building import image_set
from tests.tiny import tiny_program

PROGRAM = tiny_program(gated=True, skip=True)


def case(program: Program = PROGRAM, **changes: Any) -> Case:
    wanted = replace(load_target("x86-64-onnxruntime"), requires_flags=())
    values: dict[str, Any] = {
        "program": program,
        "plan": None,
        "model": assemble(program),
        "target": wanted,
        "folder": Path("nowhere"),
        "runtime": backend(wanted.backend),
        "calibration": image_set(program, 6),
        "evaluation": None,
    }
    return Case(**{**values, **changes})


def points(program: Program = PROGRAM, **changes: Any) -> tuple[OperatingPoint, ...]:
    asked = case(program, **changes)
    return measure_points(asked, reference(asked.model)).measured


@pytest.fixture(scope="module")
def measured() -> tuple[OperatingPoint, ...]:
    return points(evaluation=image_set(PROGRAM, 70, labels=True))


def test_all_names_are_there_from_the_cheapest(measured: tuple[OperatingPoint, ...]) -> None:
    assert tuple(point.name for point in measured if point.name is not None) == NAMES
    efforts = [point.effort for point in measured]
    assert efforts == sorted(efforts)
    by_name = {point.name: point for point in measured}
    assert by_name["balanced"].effort == 0.0 and by_name["full"].effort == EFFORT_ALL_OPEN


def test_costs_grow_up_to_all_open(measured: tuple[OperatingPoint, ...]) -> None:
    costs = [point.macs for point in measured]
    assert costs == sorted(costs) and costs[0] < costs[-1] == total_macs(PROGRAM.spec)
    assert all(point.macs <= point.worst_macs <= total_macs(PROGRAM.spec) for point in measured)
    assert measured[0].branches == 0 and measured[-1].branches == len(PROGRAM.spec.branches)
    assert measured[0].effort == EFFORT_ALL_SKIPPED


def test_points_tell_agreement_and_top1(measured: tuple[OperatingPoint, ...]) -> None:
    for point in measured:
        assert point.images == 64 and point.against == "float"
        assert point.agreement is not None and point.top1 is not None
    # What is measured is the float model itself here, as calibrated.
    balanced = next(point for point in measured if point.name == "balanced")
    assert balanced.agreement is not None and balanced.agreement.hits == 64
    assert {point.top1 for point in points()} == {None}


def test_equal_builds_have_equal_points() -> None:
    assert points() == points()


def test_without_gates_there_are_none() -> None:
    assert points(tiny_program()) == ()


def test_one_score_decides_nothing_and_has_costs_alone() -> None:
    found = points(tiny_program(gated=True, classes=1))
    assert found and {point.agreement for point in found} == {None}


def test_thresholds_of_merges_have_points_too() -> None:
    found = points(tiny_program(image=(64, 64), tokens="1:0-24@0.2"))
    assert tuple(point.name for point in found if point.name is not None) == NAMES
    assert found[0].macs < found[-1].macs and found[0].branches == found[-1].branches


def test_far_below_the_fastest_the_curve_has_a_point_on_its_way() -> None:
    # From 4 branches to none between efforts -0.1 and -6; answers change at once.
    found = gradual(Gradual(changes=100.0, opens=(-6.0, -4.0, -2.0, -0.05))).measured
    unnamed = [point for point in found if point.name is None]
    assert [point.effort for point in unnamed] == sorted(point.effort for point in unnamed)
    first, middle, last = unnamed
    assert (first.effort, last.effort) == (EFFORT_ALL_SKIPPED, -0.1) and -6 < middle.effort < -0.1
    assert first.macs < middle.macs < last.macs
    # Where all is skipped soon there is none.
    soon = gradual(Gradual(changes=100.0, opens=(-0.09, -0.08, -0.07, -0.05))).measured
    assert len([point for point in soon if point.name is None]) == 2


@pytest.mark.parametrize(
    ("macs", "wanted", "effort"),
    [
        ([1.0, 2.0, 3.0], 2.5, 1.5),
        ([1.0, 1.0, 3.0], 1.0, 0.0),
        ([1.0, 1.0, 1.0], 1.0, 0.0),
        ([1.0, 1.0, 3.0], 2.0, 1.5),
    ],
)
def test_an_effort_lies_between_those_that_were_tried(macs: list[float], wanted: float, effort: float) -> None:
    assert _between([0.0, 1.0, 2.0], np.array(macs), wanted) == effort


def test_infinite_efforts_are_not_taken_for_numbers() -> None:
    assert _between([0.0, EFFORT_ALL_OPEN], np.array([1.0, 3.0]), 2.0) == GRID[-1]


class Gradual:
    """A model whose answers change one after the other as effort falls, and whose branches open as it rises.

    `changes` answers are others per unit of effort; branches open at the efforts `opens`.
    """

    def __init__(self, *, changes: float = 10.0, opens: tuple[float, ...] = (-0.25, -0.05, 0.3, 3.0)) -> None:
        self.index = {image.tobytes(): number for number, image in enumerate(image_set(PROGRAM, 20).images)}
        self.changes, self.opens = changes, np.array(opens)

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        changed = self.index[image[0].tobytes()] < min(20, -effort * self.changes)
        return np.eye(1, 10, int(changed), dtype=np.float32), (effort > self.opens).astype(np.uint8)


def gradual(runner: Gradual) -> Points:
    return measure_points(case(calibration=image_set(PROGRAM, 20)), runner)  # type: ignore[arg-type]


def named(found: Points) -> dict[str, OperatingPoint]:
    return {point.name: point for point in found.measured if point.name is not None}


def test_the_cheap_points_keep_most_answers() -> None:
    """At -0.1 one of 20 answers is another, at -0.2 two, at -0.3 three, at -0.5 five."""
    found = gradual(Gradual())
    efforts = {name: point.effort for name, point in named(found).items()}
    assert (efforts["fastest"], efforts["fast"], efforts["balanced"]) == (-0.3, -0.1, 0.0)
    assert [point.effort for point in found.measured if point.name is None] == [EFFORT_ALL_SKIPPED, -0.5]
    assert 0.2 < efforts["accurate"] <= 3


def test_where_both_limits_allow_the_same_effort_fast_is_half_of_the_way_to_it() -> None:
    """No answer ever changes, and below -2 nothing runs any more: -3 is as cheap as -16, and nearer."""
    found = named(gradual(Gradual(changes=0.0, opens=(-2.5, -0.4, 0.3, 3.0))))
    costs = [found[name].macs for name in NAMES]
    assert costs == sorted(set(costs)), "five points, five costs"
    assert found["fastest"].effort == -3.0 and -3.0 < found["fast"].effort < 0.0


def test_without_a_cheaper_effort_the_cheap_points_are_the_balanced_one() -> None:
    found = named(gradual(Gradual(changes=0.0, opens=(-1e9, -1e9, 0.3, 3.0))))
    assert {found[name].effort for name in ("fastest", "fast", "balanced")} == {0.0}


def test_where_any_less_effort_changes_answers_the_cheap_points_are_the_balanced_one() -> None:
    runner = Gradual()
    runner.index = dict.fromkeys(runner.index, 0)
    found = named(gradual(runner))
    assert {found[name].effort for name in ("fastest", "fast", "balanced")} == {0.0}


def test_times_are_told_where_it_runs_and_stay_out_of_the_points() -> None:
    found = gradual(Gradual())
    assert {time.effort for time in found.times} == {point.effort for point in found.measured}
    assert all(0 <= time.mean_ms <= time.most_ms for time in found.times)
    assert gradual(Gradual()).measured == found.measured


def test_what_the_float_model_said_of_all_images_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, images = case(), image_set(PROGRAM, 6).images
    floats = np.array([reference(assemble(PROGRAM)).run(image[None])[0].argmax() for image in images])
    expected = points()
    monkeypatch.setattr(measuring, "taps", lambda *_: pytest.fail("the float model is asked"))
    assert measure_points(asked, reference(asked.model), floats=floats).measured == expected
    monkeypatch.undo()
    assert measure_points(asked, reference(asked.model), floats=floats[:2]).measured == expected


class Elsewhere(Case):
    """A build for another machine."""

    elsewhere = True


def test_a_build_for_another_machine_has_points_and_no_times() -> None:
    asked = case()
    there = Elsewhere(**{name: getattr(asked, name) for name in asked.__dataclass_fields__})
    found = measure_points(there, reference(asked.model))
    assert found.measured == points() and found.times == ()


@pytest.mark.parametrize(("native", "most_ms"), [(True, 0.0), (False, 1000.0)])
def test_other_threads_do_not_count_in_the_time_of_machine_code(
    native: bool, most_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the one that draws a progress bar: its time is the process's, not the model's."""
    seconds = iter(range(10_000))
    monkeypatch.setattr("time.process_time", lambda: float(next(seconds)))
    monkeypatch.setattr("time.thread_time", lambda: 0.0)
    monkeypatch.setattr(crews, "threads_here", lambda: 1)
    asked = case(runtime=SimpleNamespace(NATIVE=native))
    assert {time.most_ms for time in measure_points(asked, reference(asked.model)).times} == {most_ms}
