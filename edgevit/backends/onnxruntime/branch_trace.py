"""Inside one run, as the runtime itself tells it: time per branch, and memory over an all-open run.

ONNX Runtime's profile lists every executed node with the arena's bytes in use; the event of an `If` spans its body.
OpenVINO's counters give one row per `If` and no memory, TVM's virtual machine tells every kernel. All cost time, so
these figures never enter the latency, and an arena belongs to its process, so each is taken in a fresh one:
`python -m edgevit.backends.onnxruntime.branch_trace REQUEST`.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.onnxruntime import memory
from edgevit.measure.branch_times import Trace
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.measurement import MemoryPoint, MemoryTrace
from edgevit.util import strict_json
from edgevit.util.atomic import scratch

WARM_UP_RUNS = 3


class KernelCall(Protocol):
    """A kernel's call as `edgevit.backends.tvm.run.trace` tells it."""

    @property
    def stage(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def ms(self) -> float: ...
    @property
    def grown_bytes(self) -> int | None: ...


Images = NDArray[np.uint8]


def trace_onnxruntime(
    model: Path, images: Images, *, backend: Any, branches: Sequence[str], gated: Sequence[str], **settings: Any
) -> Trace:
    """Profile all-open and all-skipped runs of each image, in a session set up as the backend sets up its own."""
    onnxruntime = memory.runtime()
    with scratch() as folder:
        options = backend.options(settings["threads"], settings["weight_bits"])
        memory.configure(options)
        if model.suffix == ".ort":
            memory.map_weights(options)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "run")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        efforts = _efforts(gated)
        for image in (*images[:1].repeat(WARM_UP_RUNS, axis=0), *images):
            for effort in efforts:
                session.run(["logits", "gates"], _feeds(image, effort, gated))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = split_runs(events)[WARM_UP_RUNS * len(efforts) :]
    opened_runs, skipped_runs = runs[:: len(efforts)], runs[len(efforts) - 1 :: len(efforts)]
    opened, skipped = (
        [branch_times([(_name(e), e["dur"] / 1000) for e in top_level(run)], branches, gated) for run in half]
        for half in (opened_runs, skipped_runs)
    )
    whole = [(run[-1]["ts"] + run[-1]["dur"] - run[0]["ts"]) / 1000 for run in opened_runs]
    return Trace(
        open_ms=_medians(opened),
        skipped_ms={name: time for name, time in _medians(skipped).items() if name in gated},
        other_ms=statistics.median(w - sum(b.values()) for w, b in zip(whole, opened, strict=True)),
        source=f"ONNX Runtime profile, median of {len(images)} runs",
        # Memory is the same in all of them; the fastest one shows least of what else the machine was doing.
        memory=memory_over_run(opened_runs[whole.index(min(whole))], runs),
    )


def trace_openvino(
    model: Path, images: Images, *, backend: Any, branches: Sequence[str], gated: Sequence[str], **settings: Any
) -> Trace:
    """Read OpenVINO's counters, which are means since loading: totals before and after each path are subtracted."""
    request = backend.counting(model, **settings)
    done = 0

    def totals_after(effort: float, chosen: Images) -> list[tuple[str, float]]:
        nonlocal done
        for image in chosen:
            request.infer(_feeds(image, effort, gated))
        done += len(chosen)
        return [(row.node_name, 1000 * done * row.real_time.total_seconds()) for row in request.profiling_info]

    found, whole = [], []
    for effort in _efforts(gated):
        before = totals_after(effort, images[:1].repeat(WARM_UP_RUNS, axis=0))
        after = totals_after(effort, images)
        rows = [(name, (b - a) / len(images)) for (name, a), (_, b) in zip(before, after, strict=True)]
        found.append(branch_times(rows, branches, gated))
        whole.append(sum(time for _, time in rows))
    return Trace(
        open_ms=found[0],
        skipped_ms={name: time for name, time in found[-1].items() if name in gated},
        other_ms=whole[0] - sum(found[0].values()),
        source=f"OpenVINO counters, mean of {len(images)} runs",
        memory=None,
    )


def trace_tvm(
    model: Path, images: Images, *, backend: Any, branches: Sequence[str], gated: Sequence[str], **settings: Any
) -> Trace:
    """Time the kernels of every branch, as the virtual machine calls them."""
    runner = backend.start(model.parent, trace=True, threads=settings["threads"])
    runs = []
    for index, effort in traced(len(images), gated):
        calls, _ = runner.trace(np.ascontiguousarray(images[index : index + 1]), effort)
        runs.append(calls)
    runner.close()
    return kernel_times(runs, branches=branches, gated=gated)


def traced(images: int, gated: Sequence[str]) -> list[tuple[int, float]]:
    """(image, effort) of every run of a traced process, those that warm it up included."""
    return [(index, effort) for index in (*[0] * WARM_UP_RUNS, *range(images)) for effort in _efforts(gated)]


def kernel_times(runs: Sequence[Sequence[KernelCall]], *, branches: Sequence[str], gated: Sequence[str]) -> Trace:
    """Put the kernel calls of the runs that `traced` lists together; the first run of the process tells its memory."""
    efforts = len(_efforts(gated))
    kept = [[(call.stage, call.ms) for call in run] for run in runs[WARM_UP_RUNS * efforts :]]
    opened, skipped = kept[::efforts], kept[efforts - 1 :: efforts]
    open_ms = [{name: sum(ms for stage, ms in run if stage == name) for name in branches} for run in opened]
    return Trace(
        open_ms=_medians(open_ms),
        skipped_ms=_medians(
            [{name: sum(ms for stage, ms in run if stage == f"{name}.skip") for name in gated} for run in skipped]
        ),
        other_ms=statistics.median(
            sum(ms for _, ms in run) - sum(each.values()) for run, each in zip(opened, open_ms, strict=True)
        ),
        source=f"TVM kernel times, median of {len(opened)} runs",
        memory=_grown(runs[0]),
    )


def _grown(run: Sequence[KernelCall]) -> MemoryTrace | None:
    """Bytes that a fresh process had touched or allocated after every kernel of its first run."""
    points, time_ms = [], 0.0
    for call in run:
        time_ms += call.ms
        if call.grown_bytes is not None:
            points.append(MemoryPoint(time_ms=time_ms, bytes=call.grown_bytes, where=f"{call.stage}/{call.kernel}"))
    return MemoryTrace(of="runtime", peak_bytes=max(p.bytes for p in points), points=tuple(points)) if points else None


TRACES: Mapping[str, Callable[..., Trace]] = {
    "onnxruntime": trace_onnxruntime,
    "openvino": trace_openvino,
    "tvm": trace_tvm,
}


def main(request: dict[str, Any]) -> Trace:
    """Trace as the request says: `runtime`, `model` and `images` (files), the `backend` module, branches, settings."""
    images = np.load(request.pop("images"), allow_pickle=False)
    backend, runtime = importlib.import_module(request.pop("backend")), request.pop("runtime")
    return TRACES[runtime](Path(request.pop("model")), images, backend=backend, **request)


def split_runs(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Node events of each run of a profile, in order of their start."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted((e for e in events if e["cat"] == "Node"), key=lambda e: e["ts"])
    return [[e for e in nodes if begin <= e["ts"] <= end] for begin, end in spans]


def top_level(run: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Events of the main graph: those inside the window of an `If` belong to its body and are in its time already."""
    kept, end = [], -1
    for event in run:
        if event["ts"] >= end:
            kept.append(event)
            if event["args"].get("op_name") == "If":
                end = event["ts"] + event["dur"]
    return kept


def branch_times(rows: Sequence[tuple[str, float]], branches: Sequence[str], gated: Sequence[str]) -> dict[str, float]:
    """Time per branch from (node, time) rows in execution order.

    A gated branch is its `If`, named `<branch>/y`. Of an ungated one all nodes count that carry its name; runtimes
    rename what they fuse, and such a node belongs to the next one with a name.
    """
    times: dict[str, float] = {}
    pending = 0.0
    for node, time in rows:
        owner = next((name for name in branches if node.startswith((f"{name}/", f"{name}."))), None)
        known = owner is not None or node.startswith(("stem/", "head", "logits", "gates"))
        if owner is not None and owner not in gated:
            times[owner] = times.get(owner, 0.0) + pending + time
        elif owner is not None and node == f"{owner}/y":
            times[owner] = time
        pending = 0.0 if known else pending + time
    return times


def memory_over_run(
    run: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Mapping[str, Any]]]
) -> MemoryTrace | None:
    """Bytes in use after every node of one run, and the peak over all runs; None if the profile tells no memory."""
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


def _efforts(gated: Sequence[str]) -> tuple[float, ...]:
    return (EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED) if gated else (0.0,)


def _feeds(image: Images, effort: float, gated: Sequence[str]) -> dict[str, Any]:
    feeds: dict[str, Any] = {"image": np.ascontiguousarray(image[None])}
    return {**feeds, "effort": np.array(effort, dtype=np.float32)} if gated else feeds


def _name(event: Mapping[str, Any]) -> str:
    return str(event["name"]).removesuffix("_kernel_time")


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs if name in run) for name in runs[0]}


if __name__ == "__main__":
    print(json.dumps(strict_json.to_data(main(json.loads(sys.argv[1])))))
