"""The device a bundle is measured on. So far it is this machine: a fresh process of it, with nothing else loaded."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import BundleError, of_process
from edgevit.measure.branch_times import Trace
from edgevit.schema.measurement import MemoryPoint, MemoryTrace, ProcessMemory
from edgevit.util import strict_json
from edgevit.util.atomic import scratch
from edgevit.util.signals import exit_words

TIMEOUT_S = 600
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a fresh process saw; memory is None where the system does not tell it."""

    process: ProcessMemory | None
    trace: MemoryTrace | None
    load_ms: float
    first_run_ms: float


def probe_local(
    backend: str,
    model: Path,
    images: NDArray[np.uint8],
    efforts: Sequence[float],
    *,
    threads: int,
    precision: str,
    weight_bits: int = 8,
) -> Probe:
    """Load `model` in a fresh process of this machine, run every effort a few times, and report memory and times.

    Args:
        backend: module that can load the model, by its full name.
        model: the file the runtime loads.
        images: uint8 RGB `[n, height, width, 3]`.
        efforts: values of the input `effort`, one per path.
        threads: threads of a run.
        precision: type of what stays float.
        weight_bits: the target's; with 8 a CPU that would saturate takes exact int8 kernels.

    Raises:
        BundleError: the process failed, or loaded torch, timm or onnx, which a device does not have.
    """
    request = {
        "backend": backend,
        "folder": str(model.parent.resolve()),
        "file": model.name,
        "efforts": list(efforts),
        "rounds": ROUNDS,
        "threads": threads,
        "precision": precision,
        "weight_bits": weight_bits,
    }
    answer = _fresh("edgevit.measure.probe", request, images)
    if answer["heavy"]:
        raise BundleError(f"the process on the device loaded {', '.join(answer['heavy'])}; a device has none of them")
    return _probe(answer)


def probe_runner(
    backend: str, model: Path, image: NDArray[np.uint8], efforts: Sequence[float], *, threads: int
) -> Probe:
    """Start the bundle's own runner, a program that needs no Python, load and run every effort, and report the same.

    Args:
        backend: module that can start it, by its full name.
        model: the file that it loads.
        image: uint8 RGB `[1, height, width, 3]`.
        efforts: values of the input `effort`, one per path.
        threads: of a run.

    Raises:
        BundleError: it is missing, or cannot run here.
    """
    runner = importlib.import_module(backend).start(model.parent, threads=threads)
    told = []
    try:
        for effort in efforts:
            runner.run(image, effort)
            told.append(runner.told)
    finally:
        runner.close()
    first, last = told[0], told[-1]
    held = (first["started_bytes"], first["load_peak_bytes"], last["peak_bytes"])
    known = dict(zip(("imported_bytes", "loaded_bytes", "peak_bytes"), held, strict=True))
    return Probe(
        process=ProcessMemory(**known) if all(held) else None,
        trace=None,
        load_ms=float(first["load_ms"]),
        first_run_ms=float(first["wall_ms"]["median"]),
    )


def trace_local(
    backend: str,
    model: Path,
    images: NDArray[np.uint8],
    *,
    branches: Sequence[str],
    gated: Sequence[str],
    threads: int,
    precision: str,
    weight_bits: int,
) -> Trace:
    """Trace every image all-open and all-skipped in a fresh process of this machine; see `edgevit.measure.trace`.

    Raises:
        BundleError: the process failed.
    """
    request = {
        "backend": backend,
        "model": str(model.resolve()),
        "branches": list(branches),
        "gated": list(gated),
        "threads": threads,
        "precision": precision,
        "weight_bits": weight_bits,
    }
    faults: list[str] = []
    trace = strict_json.from_data(Trace, _fresh("edgevit.measure.trace", request, images), faults, "trace")
    if trace is None:
        raise BundleError(f"{backend} gave a trace that cannot be read: {'; '.join(faults)}")
    return trace


def _fresh(module: str, request: dict[str, Any], images: NDArray[np.uint8]) -> Any:
    """Run a module of this package in a new Python; it gets the request and the images, and answers in JSON."""
    with scratch() as folder:
        stored = folder / "images.npy"
        np.save(stored, images, allow_pickle=False)
        command = [sys.executable, "-m", module, json.dumps({**request, "images": str(stored)})]
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise BundleError(f"a fresh process did not load and run the model within {TIMEOUT_S} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [exit_words(done.returncode)])[-1]
        raise of_process(last) or BundleError(f"a fresh process cannot load and run the model: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _probe(answer: dict[str, Any]) -> Probe:
    process, trace = None, None
    if answer["peak_bytes"] is not None:
        process = ProcessMemory(**{key: answer[key] for key in ("imported_bytes", "loaded_bytes", "peak_bytes")})
        points = answer["points"]
        trace = MemoryTrace(
            of="process",
            peak_bytes=process.peak_bytes,
            points=tuple(MemoryPoint(time_ms=time, bytes=resident, where=where) for time, resident, where in points),
        )
    return Probe(process=process, trace=trace, load_ms=answer["load_ms"], first_run_ms=answer["first_run_ms"])
