"""The device a bundle is measured on. So far it is this machine: a fresh process of it, with nothing else loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevit.bundlespec import MemoryPoint, MemoryTrace, ProcessMemory
from edgevit.errors import BundleError

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
    backend: str, model: Path, images: NDArray[np.uint8], efforts: Sequence[float], *, threads: int, precision: str
) -> Probe:
    """Load `model` in a fresh process of this machine, run every effort a few times, and report memory and times.

    Args:
        backend: module that can load the model, by its full name.
        model: the file the runtime loads.
        images: uint8 RGB `[n, height, width, 3]`.
        efforts: values of the input `effort`, one per path.
        threads: threads of a run.
        precision: type of what stays float.

    Raises:
        BundleError: the process failed, or loaded torch, timm or onnx, which a device does not have.
    """
    with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
        stored = Path(folder) / "images.npy"
        np.save(stored, images, allow_pickle=False)
        request = {
            "backend": backend,
            "folder": str(model.parent.resolve()),
            "file": model.name,
            "images": str(stored),
            "efforts": list(efforts),
            "rounds": ROUNDS,
            "threads": threads,
            "precision": precision,
        }
        command = [sys.executable, "-m", "edgevit.measure.probe", json.dumps(request)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BundleError(f"a fresh process did not load and run {model.name} within {TIMEOUT_S} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BundleError(f"a fresh process cannot load and run {model.name}: {last[0]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if answer["heavy"]:
        raise BundleError(f"the process on the device loaded {', '.join(answer['heavy'])}; a device has none of them")
    return _probe(answer)


def _probe(answer: dict[str, object]) -> Probe:
    process, trace = None, None
    if isinstance(answer["imported_bytes"], int):
        keys = ("imported_bytes", "loaded_bytes", "peak_bytes")
        process = ProcessMemory(**{key: int(str(answer[key])) for key in keys})
        points = answer["points"]
        assert isinstance(points, list)
        trace = MemoryTrace(
            of="process",
            peak_bytes=process.peak_bytes,
            points=tuple(MemoryPoint(time_ms=time, bytes=resident, where=where) for time, resident, where in points),
        )
    return Probe(
        process=process,
        trace=trace,
        load_ms=float(str(answer["load_ms"])),
        first_run_ms=float(str(answer["first_run_ms"])),
    )
