"""Times per branch from ONNX Runtime's profile, which lists every executed node with the arena's bytes in use.

The event of an `If` spans its body.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.onnxruntime import memory
from edgevit.measure.branch_times import WARM_UP_RUNS, Trace, inputs_of, medians, times_by_branch, traced_efforts
from edgevit.schema.measurement import MemoryPoint, MemoryTrace
from edgevit.util.atomic import scratch


def trace(
    model: Path, images: NDArray[np.uint8], options: Any, *, branches: Sequence[str], gated: Sequence[str]
) -> Trace:
    """Profile all-open and all-skipped runs of each image, in a session with these options."""
    onnxruntime = memory.runtime()
    with scratch() as folder:
        memory.configure(options)
        if model.suffix == ".ort":
            memory.map_weights(options)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "run")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        efforts = traced_efforts(gated)
        # `effort` has a default, so it is not among the inputs proper.
        takes = {each.name for each in (*session.get_inputs(), *session.get_overridable_initializers())}
        for image in (*images[:1].repeat(WARM_UP_RUNS, axis=0), *images):
            for effort in efforts:
                session.run(["logits", "gates"], inputs_of(image, effort, takes))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = split_runs(events)[WARM_UP_RUNS * len(efforts) :]
    opened_runs, skipped_runs = runs[:: len(efforts)], runs[len(efforts) - 1 :: len(efforts)]
    opened, skipped = (
        [times_by_branch([(_name(e), e["dur"] / 1000) for e in top_level(run)], branches, gated) for run in half]
        for half in (opened_runs, skipped_runs)
    )
    whole = [(run[-1]["ts"] + run[-1]["dur"] - run[0]["ts"]) / 1000 for run in opened_runs]
    return Trace(
        open_ms=medians(opened),
        skipped_ms={name: time for name, time in medians(skipped).items() if name in gated},
        other_ms=statistics.median(w - sum(b.values()) for w, b in zip(whole, opened, strict=True)),
        source=f"ONNX Runtime profile, median of {len(images)} runs",
        # Memory is the same in all of them; the fastest one shows least of what else the machine was doing.
        memory=memory_over_run(opened_runs[whole.index(min(whole))], runs),
    )


def split_runs(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the node events of each run of a profile, in order of their start."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted((e for e in events if e["cat"] == "Node"), key=lambda e: e["ts"])
    return [[e for e in nodes if begin <= e["ts"] <= end] for begin, end in spans]


def top_level(run: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the events of the main graph: those inside the window of an `If` are of its body, and in its time."""
    kept, end = [], -1
    for event in run:
        if event["ts"] >= end:
            kept.append(event)
            if event["args"].get("op_name") == "If":
                end = event["ts"] + event["dur"]
    return kept


def memory_over_run(
    run: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Mapping[str, Any]]]
) -> MemoryTrace | None:
    """Return the bytes in use after every node of one run, and the peak over all runs; None if no memory is told."""
    told = sorted((e for e in run if "mem_bytes_in_use" in e["args"]), key=lambda e: e["ts"] + e["dur"])
    if not told:
        return None
    begin = run[0]["ts"]
    points = tuple(
        MemoryPoint(
            time_ms=(e["ts"] + e["dur"] - begin) / 1000, bytes=int(e["args"]["mem_bytes_in_use"]), where=_name(e)
        )
        for e in told
    )
    peak = max(int(e["args"]["mem_in_use_peak"]) for each in runs for e in each if "mem_in_use_peak" in e["args"])
    return MemoryTrace(of="runtime", peak_bytes=peak, points=points)


def _name(event: Mapping[str, Any]) -> str:
    return str(event["name"]).removesuffix("_kernel_time")
