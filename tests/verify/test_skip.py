from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.backends import Runner, onnx_backend, onnx_backends, onnxruntime
from edgevit.backends.hollow import hollow
from edgevit.errors import SkipError
from edgevit.onnx_form.assemble import Gating, assemble
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.util.strict_json import to_data
from edgevit.verify.skip import (
    ALL_OPEN,
    ALL_SKIPPED,
    Trace,
    check_skip_floor,
    check_skip_nodes,
    check_skip_time,
    skipped_macs,
)
from tests.lowered import tiny_plan, without_skipping
from tests.tiny import tiny_images, tiny_program

PROGRAM = tiny_program(gated=True, skip=True, depth=3)
IMAGES = tiny_images(PROGRAM.spec, 2)
# Large enough that its branches, not the runtime, take the time.
LARGE = tiny_program(gated=True, depth=4, dim=128, heads=4, hidden=768, image=(96, 96))
LARGE_IMAGES = tiny_images(LARGE.spec, 3)


def tracer(model: onnx.ModelProto, folder: Path) -> Trace:
    onnxruntime.compile(model, folder, formats=("onnx",))
    return lambda image, effort: onnxruntime.executed(folder, image, effort)


def runner(gating: Gating, name: str, folder: Path, program: Program = LARGE) -> Runner:
    return loaded(assemble(program, gating=gating), name, folder)


def loaded(model: onnx.ModelProto, name: str, folder: Path) -> Runner:
    onnx_backend(name).compile(model, folder)
    return onnx_backend(name).load(folder)


@pytest.mark.parametrize("quantized", [False, True])
def test_closed_branches_run_nothing(quantized: bool, tmp_path: Path) -> None:
    model = assemble(PROGRAM, tiny_plan(PROGRAM) if quantized else None)
    result = check_skip_nodes(PROGRAM.spec, tracer(model, tmp_path), IMAGES)
    opened, skipped, real = result.paths[:3]
    # Stem, head, 6 gates, and per open branch 6 products (MHSA) or 2 (FFN); or 6 skips.
    assert (opened.open, opened.matrix_kernels) == (6, 1 + 1 + 6 + 3 * 6 + 3 * 2)
    assert (skipped.open, skipped.matrix_kernels) == (0, 1 + 1 + 6 + 6)
    assert skipped.matrix_kernels < real.matrix_kernels < opened.matrix_kernels
    assert to_data(result)["paths"][1]["nodes"] == skipped.nodes < opened.nodes
    assert result.summary.startswith("no node of a closed branch runs; matrix kernels: 32 with 6 open")


def test_every_drawn_path_is_held(tmp_path: Path) -> None:
    efforts = tuple(np.linspace(-2, 2, 9))
    result = check_skip_nodes(PROGRAM.spec, tracer(assemble(PROGRAM), tmp_path), IMAGES, efforts=efforts)
    assert len({p.open for p in result.paths}) > 3


def test_a_hoisted_branch_is_caught(tmp_path: Path) -> None:
    with pytest.raises(
        SkipError, match=r"b00_mhsa is closed \(effort -infinity, gates 000000\) and still runs \d+ nodes"
    ):
        check_skip_nodes(PROGRAM.spec, tracer(assemble(PROGRAM, gating="both"), tmp_path), IMAGES)


def test_one_hoisted_product_is_caught(tmp_path: Path) -> None:
    model = assemble(PROGRAM)
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.name == "b01_ffn/y")
    body = next(a.g for a in node.attribute if a.name == "then_branch")
    kept, moved = [n for n in body.node if "fc2" in n.name or "out" in n.name], []
    for inner in body.node:
        if inner not in kept:
            moved.append(inner)
            inner.name = f"optimiser_{len(moved)}"
    model.graph.initializer.extend(body.initializer)
    nodes = [*model.graph.node[:index], *moved, node, *model.graph.node[index + 1 :]]
    del body.node[:], body.initializer[:], model.graph.node[:]
    body.node.extend(kept)
    model.graph.node.extend(nodes)
    message = r"1 matrix kernels ran that belong to no open branch \(effort [^)]*\): optimiser_2"
    with pytest.raises(SkipError, match=message):
        check_skip_nodes(PROGRAM.spec, tracer(model, tmp_path), IMAGES)


def test_a_branch_that_does_not_run_when_open_is_caught() -> None:
    def trace(image: np.ndarray, effort: float) -> tuple[list[tuple[str, str]], np.ndarray]:
        return [("stem/y", "Gemm")], np.ones(6, np.uint8)

    with pytest.raises(SkipError, match=r"b00_mhsa is open .* runs no node"):
        check_skip_nodes(PROGRAM.spec, trace, IMAGES)


@pytest.mark.parametrize("name", onnx_backends())
def test_skipping_saves_time(name: str, tmp_path: Path) -> None:
    result = check_skip_time(LARGE.spec, runner("if", name, tmp_path), LARGE_IMAGES, margin=0.25)
    assert result.expected == skipped_macs(LARGE.spec) / total_macs(LARGE.spec) < 0.1
    assert result.ratio < result.limit == result.expected + 0.25
    assert "all skipped costs" in result.summary and to_data(result)["runs"] == 15


@pytest.mark.parametrize("name", onnx_backends())
def test_computing_both_sides_is_caught_by_time(name: str, tmp_path: Path) -> None:
    with pytest.raises(SkipError, match=r"all open \S+ ms, all skipped \S+ ms; a closed gate does not save"):
        check_skip_time(LARGE.spec, runner("both", name, tmp_path), LARGE_IMAGES, margin=0.25)


@pytest.mark.parametrize("name", onnx_backends())
@pytest.mark.parametrize("program", [PROGRAM, LARGE], ids=["tiny", "large"])
def test_what_is_skipped_costs_what_empty_branches_do(name: str, program: Program, tmp_path: Path) -> None:
    """However small a model is: of the tiny one's time most is paid on every path."""
    branches = [branch.name for branch in program.spec.branches]
    empty = loaded(hollow(assemble(program), branches), name, tmp_path)
    images = tiny_images(program.spec, 3)
    result = check_skip_floor(runner("if", name, tmp_path, program), empty, images)
    assert result.all_skipped_ms <= result.limit_ms < result.all_open_ms
    assert "the same graph with empty branches" in result.summary
    with pytest.raises(SkipError, match=r"all skipped takes \S+ ms, all open .*; a closed gate does not save the work"):
        check_skip_floor(loaded(without_skipping(assemble(program)), name, tmp_path), empty, images)


def test_a_quarter_of_what_empty_branches_save_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Fake:
        def __init__(self, opened: float, skipped: float) -> None:
            self.costs = opened, skipped

        def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
            clock[0] += self.costs[effort < 0] / 1e3
            return np.zeros((1, 10)), np.zeros(4)

    monkeypatch.setattr(import_module("edgevit.verify.skip").time, "process_time", lambda: clock[0])
    empty = Fake(1.2, 1.0)
    found = check_skip_floor(Fake(2.0, 1.24), empty, IMAGES)
    assert found.empty_ms == pytest.approx(1.0) and found.limit_ms == pytest.approx(1.25)
    with pytest.raises(SkipError, match="1.26 ms"):
        check_skip_floor(Fake(2.0, 1.26), empty, IMAGES)
    # Where little can be saved, two medians of one thing may differ by more than that.
    assert check_skip_floor(Fake(1.02, 1.04), empty, IMAGES).limit_ms == pytest.approx(1.05)


def test_ungated_branches_count_as_run() -> None:
    plain = tiny_program()
    assert skipped_macs(plain.spec) == total_macs(plain.spec)
    assert (ALL_OPEN, ALL_SKIPPED) == (1e9, -1e9)


@pytest.mark.parametrize("disturbed", [20, 10**6])
def test_what_misses_the_limit_is_measured_again(monkeypatch: pytest.MonkeyPatch, disturbed: int) -> None:
    clock, count = [0.0], [0]

    class Fake:
        def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
            count[0] += 1
            clock[0] += 1.0 if effort > 0 or count[0] < disturbed else 0.1
            return np.zeros((1, 10)), np.zeros(4)

    monkeypatch.setattr(import_module("edgevit.verify.skip").time, "process_time", lambda: clock[0])
    if disturbed > 1000:
        with pytest.raises(SkipError, match="135 runs"):
            check_skip_time(LARGE.spec, Fake(), LARGE_IMAGES)
        assert count[0] == 2 * (16 + 46 + 136)
    else:
        assert check_skip_time(LARGE.spec, Fake(), LARGE_IMAGES).runs == 45
