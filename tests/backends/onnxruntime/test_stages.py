"""Runs whose sizes follow the image, in stages: the sizes of each against the runtime, and which there are."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgevit.backends.onnxruntime import compile, load, shapes
from edgevit.backends.onnxruntime import stages as stages_module
from edgevit.backends.onnxruntime.arena import drawn_efforts, measure_arena
from edgevit.backends.onnxruntime.frames import Frame, main_frame
from edgevit.backends.onnxruntime.memory_bound import bound_of_graph, optimised
from edgevit.backends.onnxruntime.stages import BLIND, Stage, stages
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import most_pairs, pair_counts, patches_before
from tests.tiny import tiny_images, tiny_program

PLANS = (
    "1:0-32@0.85",
    "1:0-27@0.85,2:3-17@0.8,3:1",
    "1:0-32@0.85,2:0-32@0.83,3:0-32@0.85",
    "1:4,2:0-27@0.8,3:0-20@0.8",
)


def following(**options: Any) -> Program:
    return tiny_program(**{"depth": 4, "image": (64, 64), "dim": 64, **options})


def cut(program: Program) -> tuple[onnx.GraphProto, Frame, tuple[Stage, ...]]:
    graph = optimised(assemble(program))
    main = main_frame(graph)
    return graph, main, stages(graph, main, 10**6)


def possible(spec: ProgramSpec, merged: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every sequence of merged pairs that images of a spec can come to, by its points."""
    if len(merged) == len(spec.merges):
        yield merged
        return
    point, left = spec.merges[len(merged)], spec.patches - sum(merged)
    allowed = pair_counts(point, spec.stem.prefix + left) if point.threshold is not None else (point.count,)
    for pairs in allowed:
        if pairs <= most_pairs(spec, point, left):
            yield from possible(spec, (*merged, pairs))


def runs(found: tuple[Stage, ...]) -> list[tuple[int, ...]]:
    """The counts of every run, without the 0 that the first stage begins with."""
    ways: list[tuple[tuple[int, ...], int]] = [((), 0)]
    for stage in found:
        ways = [((*counts, stage.counts[v]), stage.ends[v]) for counts, way in ways for v in stage.entries[way]]
    return [counts[1:] for counts, _ in ways]


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_runs_are_those_that_the_points_allow(plan: str, stepped: bool) -> None:
    program = following(tokens=plan, stepped=stepped)
    graph, main, found = cut(program)
    follows = [point.threshold is not None for point in program.spec.merges]
    said = {
        tuple(n - p.least for n, p, f in zip(merged, program.spec.merges, follows, strict=True) if f)
        for merged in possible(program.spec)
    }
    assert set(runs(found)) == said and len(runs(found)) == len(said) > 2
    assert len(found) == 1 + sum(follows)
    assert stages(graph, main, len(said)) == found and stages(graph, main, len(said) - 1) == ()


def test_a_model_that_counts_nothing_is_one_stage() -> None:
    _, main, found = cut(following(tokens="1:4,2:3"))
    assert [stage.variants for stage in found] == [(main.steps,)] and runs(found) == [()]


def test_what_is_not_known_to_be_impossible_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    program = following(tokens=PLANS[2])
    monkeypatch.setattr(np, "isneginf", lambda array: np.zeros(array.shape, dtype=bool))
    _, _, found = cut(program)
    # Of the first point's five numbers all but 0 leave a multiple of 8 rows; what these rows allow comes after them.
    assert len(runs(found)) > len(set(possible(program.spec)))


@pytest.mark.parametrize("options", [{"stepped": True}, {}, {"gated": True, "skip": True}])
@pytest.mark.parametrize("plan", PLANS[:3])
def test_every_run_has_in_use_what_its_variants_say(plan: str, options: dict[str, Any], tmp_path: Path) -> None:
    assert slacks(following(tokens=plan, **options), tmp_path) == {0}


def test_sizes_that_are_not_handed_on_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_module._Cut, "_needed", lambda *_: {})
    assert slacks(following(tokens=PLANS[2], stepped=True), tmp_path) != {0}


def slacks(program: Program, folder: Path) -> set[int]:
    """What runs have in use less than their variants say: by most, fewest and drawn numbers of tokens, node by node."""
    compile(assemble(program), folder, formats=("onnx",))
    image, efforts = tiny_images(program.spec, 1), {str(i): effort for i, effort in enumerate(drawn_efforts())}
    measured = measure_arena(folder / "model.onnx", image, efforts)
    graph = optimised(folder / "model.onnx")
    main, weights = main_frame(graph), bound_of_graph(graph).arena_weights_bytes
    cuts, runner = stages(graph, main, 10**6), load(folder)
    found, seen = set(), set()
    for path, effort in zip(measured, efforts.values(), strict=True):
        left = tuple(map(int, runner.answer(image, effort).tokens))
        live = dataclasses.replace(main, steps=tuple(_steps(cuts, _pairs(program.spec, left)))).live
        said = {step.node: weights + size for step, size in zip(main.steps, live, strict=True) if not step.bodies}
        found |= {said[node] - in_use for node, in_use in path.nodes if node in said}
        seen.add(left)
    assert len(seen) > 2
    return found


def _pairs(spec: ProgramSpec, left: tuple[int, ...]) -> list[int]:
    """What the points that follow the image counted, beyond the least."""
    pairs = [before - after for before, after in zip(patches_before(spec, left), left, strict=True)]
    return [n - p.least for n, p in zip(pairs, spec.merges, strict=True) if p.threshold is not None]


def _steps(found: tuple[Stage, ...], counts: list[int]) -> Iterator[Any]:
    way = 0
    for stage, count in zip(found, [0, *counts], strict=True):
        (variant,) = (v for v in stage.entries[way] if stage.counts[v] == count)
        yield from stage.variants[variant]
        way = stage.ends[variant]


@pytest.mark.parametrize("op", BLIND)
def test_numbers_do_not_pass_operators_that_are_blind(op: str) -> None:
    numbers = shapes.Value((1,), TensorProto.INT64, np.array([3]), np.array([3]))
    given: dict[str, dict[str, Any]] = {"Concat": {"axis": 0}, "Cast": {"to": TensorProto.INT32}}
    node = helper.make_node(op, ["x"] if op == "Cast" else ["x", "x"], ["y"], **given.get(op, {}))
    one, other = (
        shapes.infer(node, {"x": dataclasses.replace(numbers, data=np.array([n]))}, exact=True) for n in (3, 5)
    )
    assert one == other and one[0].data is None
