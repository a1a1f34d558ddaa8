"""What ONNX Runtime's arena really held, run by run, and whether it can run inside a cap. In fresh processes.

The arena belongs to a process and its peak never falls, so every measurement starts a Python of its own, which loads
the model as a device would (`edgevit.backends.onnxruntime.memory`) and reads the runtime's profile: after every node,
branch bodies included, the profile tells the bytes in use and the peak so far.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import edgevit
from edgevit.backends import Start
from edgevit.backends.onnxruntime import memory
from edgevit.errors import BoundError, of_process
from edgevit.schema.memory_bound import BoundDetail, CappedRun, PathMemory
from edgevit.util.atomic import scratch

TIMEOUT_S = 600
SUFFIX = "_kernel_time"
PATHS: Mapping[str, float] = {"all_open": np.inf, "all_skipped": -np.inf, "real": 0.0}
TWICE = (np.inf, np.inf)
DRAWN = 12


def drawn_efforts() -> tuple[float, ...]:
    """Return efforts that lead from most tokens to fewest and back by way of numbers between them."""
    drawn = np.random.default_rng(0).uniform(-3, 3, DRAWN)
    return (np.inf, -np.inf, *map(float, drawn), np.inf, np.inf)


def measure_arena(
    model: Path,
    image: np.ndarray,
    efforts: Mapping[str, float] = PATHS,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    start: Start | None = None,
) -> tuple[PathMemory, ...]:
    """Run `model` (`model.onnx`, its data beside it, or `.ort`) once per named effort in one fresh process.

    Args:
        model: the file, as it is shipped.
        image: uint8 RGB `[1, height, width, 3]`.
        efforts: name of a path to the input `effort` that is to take it; a model without it runs the first only.
        settings: the backend's session configuration entries, as the device has them.
        start: starts that process (None: on this machine).

    Raises:
        BoundError: the run failed, or the runtime's profile lacks memory figures.
    """
    with scratch() as folder:
        reply = _child(folder, model, image, list(efforts.values()), {}, settings, start or _here)
        if reply["error"]:
            raise BoundError(f"the run that measures memory failed: {reply['error']}")
        events = json.loads(Path(reply["profile"]).read_text())
    runs = _split_runs(events)
    paths, highest = [], 0
    for (name, effort), nodes, opened in zip(efforts.items(), runs, reply["open"], strict=False):
        before, highest = highest, max(peak for _, _, peak in nodes)
        # The profile's peak is the process's: it tells this run's only when this run raised it.
        own = max(in_use for _, in_use, _ in nodes)
        paths.append(
            PathMemory(
                name=name,
                effort=effort,
                open_branches=opened,
                peak_bytes=max(own, highest) if highest > before else own,
                nodes=tuple((node, in_use) for node, in_use, _ in nodes),
            )
        )
    return tuple(paths)


def run_capped(
    model: Path,
    detail: BoundDetail,
    image: np.ndarray,
    *,
    cap_bytes: int | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
    efforts: Sequence[float] = TWICE,
) -> CappedRun:
    """Run `model` all open, twice, under an arena that may hold `cap_bytes` (default: the bound's), in a fresh process.

    Where the number of tokens follows the image and effort, `efforts` are to be run after each other instead. What the
    cap leaves beside the weights is one piece of memory, as on a device that is given the bound.
    """
    cap = detail.bound.arena_bytes if cap_bytes is None else cap_bytes
    chunk = max(cap - detail.arena_weights_bytes, memory.ARENA_UNIT_BYTES)
    with scratch() as folder:
        limits = {"cap_bytes": cap, "first_chunk_bytes": chunk}
        reply = _child(folder, model, image, efforts, limits, settings, _here)
        error = reply["error"]
        if not error:
            held = max(int(e["args"]["mem_arena_held"]) for e in _nodes(json.loads(Path(reply["profile"]).read_text())))
            # Weights are taken past the cap: ONNX Runtime holds only what comes after them against it.
            error = f"the arena held {held} bytes" if held > cap else ""
    return CappedRun(cap_bytes=cap, passed=not error, error=error)


def _child(
    folder: Path,
    model: Path,
    image: np.ndarray,
    efforts: Sequence[float],
    limits: Mapping[str, int],
    settings: Mapping[str, str],
    start: Start,
) -> Any:
    np.save(folder / "image.npy", image)
    job = {
        "model": str(model.resolve()),
        "efforts": [float(e) for e in efforts],
        "limits": dict(limits),
        "settings": dict(settings),
    }
    try:
        done = start(["-m", "edgevit.backends.onnxruntime.arena", json.dumps(job)], folder)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {TIMEOUT_S} s", "profile": "", "open": []}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if told := of_process(last):
            raise told
        return {"error": f"process ended with {done.returncode}: {last}", "profile": "", "open": []}
    return json.loads(done.stdout)


def _here(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, env=_environment(), check=False
    )


def _environment() -> dict[str, str]:
    paths = [str(Path(edgevit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _nodes(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(SUFFIX)]
    if not nodes or any("mem_in_use_peak" not in e["args"] for e in nodes):
        raise BoundError("ONNX Runtime's profile has no memory figures; they need the arena and onnxruntime 1.31")
    return sorted(nodes, key=lambda e: e["ts"] + e["dur"])


def _split_runs(events: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, int, int]]]:
    """Return (node, bytes in use, peak so far) per run, in order of execution."""
    ends = sorted(e["ts"] + e["dur"] for e in events if e.get("name") == "model_run")
    runs: list[list[tuple[str, int, int]]] = [[] for _ in ends]
    for event in _nodes(events):
        index = sum(end < event["ts"] for end in ends)
        in_use, peak = (int(event["args"][key]) for key in ("mem_bytes_in_use", "mem_in_use_peak"))
        runs[index].append((event["name"].removesuffix(SUFFIX), in_use, peak))
    return runs


def _main(job: dict[str, Any]) -> dict[str, Any]:
    """Return work in the fresh process: load, run every effort, and name the profile."""
    ort = memory.runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(Path.cwd() / "profile")
    memory.configure(options, **job["limits"])
    for key, value in job["settings"].items():
        options.add_session_config_entry(key, value)
    if job["model"].endswith(".ort"):
        memory.map_weights(options)
    opened: list[int] = []
    try:
        session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        names = {i.name for i in [*session.get_inputs(), *session.get_overridable_initializers()]}
        counts = any(output.name == "tokens" for output in session.get_outputs())
        image = np.load("image.npy")
        for effort in job["efforts"] if "effort" in names else job["efforts"][:1]:
            inputs = {"image": image} | ({"effort": np.array(effort, dtype=np.float32)} if "effort" in names else {})
            # The outputs are held while the next run goes on, as a caller may; with `tokens` the runner copies them.
            outputs = session.run(None, inputs)
            opened.append(int(outputs[1].sum()))
            if counts:
                del outputs
        return {"error": "", "profile": session.end_profiling(), "open": opened}
    except Exception as error:  # the runtime's exceptions share no base class of their own
        return {"error": str(error).strip() or type(error).__name__, "profile": "", "open": opened}


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
