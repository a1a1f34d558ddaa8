"""Operating points: five names from the cheapest to all open, each with what it was measured to cost and to answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.backends import backend
from edgevit.backends.reference import reference
from edgevit.backends.targets import load_target
from edgevit.build.case import Case
from edgevit.build.points import GRID, _between, measure_points
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.points import NAMES, OperatingPoint
from tests.test_pipeline import image_set
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
    return measure_points(asked, reference(asked.model))


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
    """A model whose answers change one after the other as effort falls, and whose branches open as it rises."""

    def __init__(self) -> None:
        self.index = {image.tobytes(): number for number, image in enumerate(image_set(PROGRAM, 20).images)}

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        changed = self.index[image[0].tobytes()] < min(20, -effort * 10)
        gates = np.array([effort > -1, effort > -0.4, effort > 0.3, effort > 3], dtype=np.uint8)
        return np.eye(1, 10, int(changed), dtype=np.float32), gates


def test_the_cheap_points_keep_most_answers() -> None:
    """At -0.1 one of 20 answers is another, at -0.2 two, at -0.3 three, at -0.5 five."""
    asked = case(calibration=image_set(PROGRAM, 20))
    found = measure_points(asked, Gradual())  # type: ignore[arg-type]
    efforts = {point.name: point.effort for point in found if point.name is not None}
    assert (efforts["fastest"], efforts["fast"], efforts["balanced"]) == (-0.3, -0.1, 0.0)
    assert [point.effort for point in found if point.name is None] == [EFFORT_ALL_SKIPPED, -0.5]
    assert 0.2 < efforts["accurate"] <= 3


def test_where_any_less_effort_changes_answers_the_cheap_points_are_the_balanced_one() -> None:
    runner = Gradual()
    runner.index = dict.fromkeys(runner.index, 0)
    found = measure_points(case(calibration=image_set(PROGRAM, 20)), runner)  # type: ignore[arg-type]
    assert {point.effort for point in found if point.name in ("fastest", "fast", "balanced")} == {0.0}
