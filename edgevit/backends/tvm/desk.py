"""What the machine that builds asks of TVM; see `edgevit.backends.Desk`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgevit.backends import Build, Executed, Forecast, MemoryEvidence
from edgevit.backends import tvm as runtime
from edgevit.backends.tvm import memory_bound
from edgevit.backends.tvm.merged import merged as merged
from edgevit.bundle.guide import Guide
from edgevit.bundle.runner_source import joined
from edgevit.program.program import Program
from edgevit.schema.memory_bound import PathMemory
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import Target

GATE_MS = 0.03  # measured: up to 0.02
BOUNDED = True


def predict(program: Program, plan: QuantPlan | None, target: Target) -> Forecast:
    laid = runtime.predict(program, plan, target)
    detail = memory_bound.bound(arena=laid.arena, io=laid.inputs + laid.outputs, weights=laid.weights)
    return Forecast(model_bytes=laid.weights, holds="weights; code comes on top", bound_bytes=detail.bound.bound_bytes)


def linear_kernels(build: Build) -> tuple[tuple[str, bool], ...]:
    return runtime.linear_kernels(build.folder)


def executed(build: Build) -> Executed:
    runner = runtime.start(build.folder, trace=True)

    def run(image: np.ndarray, effort: float) -> tuple[tuple[tuple[str, str], ...], np.ndarray]:
        calls, gates = runner.trace(image, effort)
        return tuple(call.node for call in calls), gates

    return run


def kernel_macs(build: Build) -> None:
    return None


def memory(build: Build, image: np.ndarray, efforts: Mapping[str, float], *, runs: bool) -> MemoryEvidence:
    """Read a bound off the library that ships, for any architecture, and runs of its own program in fresh processes.

    What these touched is said but not kept: to the byte it is never twice the same.
    """
    needed = runtime.memory(build.folder)
    detail = memory_bound.bound(arena=needed.arena, io=needed.inputs + needed.outputs, weights=needed.weights)
    proven = f"{detail.bound.arena_bytes / 1e6:.2f} MB proven for a run on any path"
    if not runs:
        return MemoryEvidence(detail=detail, summary=f"{proven}; not measured, as no device ran it")
    measured = _touched(build, image, efforts, at_least=needed.inputs)
    peak = max((path.peak_bytes for path in measured), default=0)
    return MemoryEvidence(
        detail=detail,
        measured=measured,
        summary=(
            f"{proven}, held by fresh processes on {len(measured)}; weights are "
            f"{detail.bound.weights_bytes / 1e6:.2f} MB of a mapped file, read as branches open"
        ),
        remark=f"a run touched {peak / 1e6:.2f} MB (the bound says {detail.bound.arena_bytes / 1e6:.2f} MB)",
    )


def _touched(build: Build, image: np.ndarray, efforts: Mapping[str, float], *, at_least: int) -> tuple[PathMemory, ...]:
    """Return what runs in fresh processes touched: small buffers may lie where one has been before, its input not."""
    return tuple(
        PathMemory(
            name=name,
            effort=effort,
            open_branches=int(gates.sum()),
            peak_bytes=max(touched, at_least),
            nodes=(),
        )
        for name, effort in efforts.items()
        for touched, gates in [runtime.touched(build.folder, image, effort)]
        if touched is not None
    )


def runner_source() -> str:
    return joined(Path(__file__).with_name("shipped_runner.py"))


def guide() -> Guide:
    linking = Path(__file__).with_name("linking.md").read_text(encoding="utf-8")
    made = {
        "lib/": "Apache-2.0",
        # libstdc++ and stb_image are linked into it.
        "runner/native/runner": "Apache-2.0 AND MIT AND (GPL-3.0-or-later WITH GCC-exception-3.1)",
        "runner/source/stb_image.h": "MIT",
    }
    return Guide(licences=made, linking=linking)
