"""What the machine that builds asks of the dummy; see `edgevit.backends.Desk`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import Build, Executed, Forecast, MemoryEvidence
from edgevit.bundle.guide import Guide
from edgevit.bundle.runner_source import joined
from edgevit.program.program import Program
from edgevit.schema.memory_bound import BoundDetail, MemoryBound, PathMemory
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import Target
from tests.backends.dummy import MODEL
from tests.backends.dummy.shipped_runner import Interpreter

GATE_MS = 1e6  # nothing is claimed of the time of an interpreter
BOUNDED = True


def predict(program: Program, plan: QuantPlan | None, target: Target) -> Forecast:
    size = sum(array.nbytes for array in program.weights.values())
    return Forecast(model_bytes=size, holds="float weights", bound_bytes=2 * size)


def linear_kernels(build: Build) -> tuple[tuple[str, bool], ...]:
    """Every Gemm, int8 where its weights are stored so."""
    model = Interpreter(build.folder / MODEL)
    nodes = list(_nodes(model.graph))
    stored = {
        name: model.arrays[node["inputs"][0]].dtype == np.int8
        for node in nodes
        if node["op"] == "DequantizeLinear" and node["inputs"][0] in model.arrays
        for name in node["outputs"]
    }
    return tuple((node["name"], stored.get(node["inputs"][1], False)) for node in nodes if node["op"] == "Gemm")


def executed(build: Build) -> Executed:
    model = Interpreter(build.folder / MODEL)

    def run(image: np.ndarray, effort: float) -> tuple[list[tuple[str, str]], np.ndarray]:
        ran: list[tuple[str, str]] = []
        _, gates = model.run(image, effort, lambda node, given: ran.append((node["name"], node["op"])))
        return ran, gates

    return run


def kernel_macs(build: Build) -> None:
    return None


def merged(build: Build) -> None:
    return None


def memory(build: Build, image: np.ndarray, efforts: Mapping[str, float], *, runs: bool) -> MemoryEvidence:
    """Every value has a buffer of its own, on the way that a run takes: no path has more than all of them."""
    model = Interpreter(build.folder / MODEL)
    measured = tuple(_held(model, image, name, effort) for name, effort in efforts.items())
    most, weights = sum(each.peak_bytes for each in measured), sum(array.nbytes for array in model.arrays.values())
    bound = MemoryBound(
        bound_bytes=weights + most + image.nbytes,
        weights_bytes=weights,
        activations_bytes=most,
        scratch_bytes=0,
        io_bytes=image.nbytes,
        arena_bytes=most,
        proven=True,
        covers="what every value of every path would take",
    )
    summary = f"{most} bytes hold every value of {len(measured)} paths"
    return MemoryEvidence(detail=BoundDetail(bound=bound), summary=summary, measured=measured, exact=True)


def _held(model: Interpreter, image: np.ndarray, name: str, effort: float) -> PathMemory:
    sizes: list[int] = []
    _, gates = model.run(image, effort, lambda node, given: sizes.extend(value.nbytes for value in given))
    return PathMemory(name=name, effort=effort, open_branches=int(gates.sum()), peak_bytes=sum(sizes), nodes=())


def _nodes(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for node in graph["nodes"]:
        yield node
        for body in ("then_branch", "else_branch"):
            if body in node:
                yield from _nodes(node[body])


def runner_source() -> str:
    return joined(Path(__file__).with_name("shipped_runner.py"))


def guide() -> Guide:
    return Guide(packages={"numpy": "BSD-3-Clause"}, linking="`Interpreter` of `runner/run.py` runs the model.\n")
