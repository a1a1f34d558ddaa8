"""Times per branch from the kernel calls that the virtual machine tells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.tvm.run.process import ProcessRunner
from edgevit.backends.tvm.run.trace import Call
from edgevit.measure.branch_times import WARM_UP_RUNS, Trace, medians, traced, traced_efforts
from edgevit.schema.measurement import MemoryPoint, MemoryTrace


def trace(runner: ProcessRunner, images: NDArray[np.uint8], *, branches: Sequence[str], gated: Sequence[str]) -> Trace:
    """Return the time the kernels of every branch as a runner that traces calls them."""
    runs = []
    for index, effort in traced(len(images), gated):
        calls, _ = runner.trace(np.ascontiguousarray(images[index : index + 1]), effort)
        runs.append(calls)
    return kernel_times(runs, branches=branches, gated=gated)


def kernel_times(runs: Sequence[Sequence[Call]], *, branches: Sequence[str], gated: Sequence[str]) -> Trace:
    """Put the kernel calls of the runs that `traced` lists together; the first run of the process tells its memory."""
    efforts = len(traced_efforts(gated))
    kept = [[(call.stage, call.ms) for call in run] for run in runs[WARM_UP_RUNS * efforts :]]
    opened, skipped = kept[::efforts], kept[efforts - 1 :: efforts]
    open_ms = [{name: sum(ms for stage, ms in run if stage == name) for name in branches} for run in opened]
    return Trace(
        open_ms=medians(open_ms),
        skipped_ms=medians(
            [{name: sum(ms for stage, ms in run if stage == f"{name}.skip") for name in gated} for run in skipped]
        ),
        other_ms=statistics.median(
            sum(ms for _, ms in run) - sum(each.values()) for run, each in zip(opened, open_ms, strict=True)
        ),
        source=f"TVM kernel times, median of {len(opened)} runs",
        memory=_grown(runs[0]),
    )


def _grown(run: Sequence[Call]) -> MemoryTrace | None:
    """Return the bytes that a fresh process had touched or allocated after every kernel of its first run."""
    points, time_ms = [], 0.0
    for call in run:
        time_ms += call.ms
        if call.grown_bytes is not None:
            points.append(MemoryPoint(time_ms=time_ms, bytes=call.grown_bytes, where=f"{call.stage}/{call.kernel}"))
    return MemoryTrace(of="runtime", peak_bytes=max(p.bytes for p in points), points=tuple(points)) if points else None
