"""What a fresh process sees that loads the model and runs it: `python -m edgevit.measure.probe REQUEST`.

It imports numpy and the runtime, nothing heavier, and prints one line of JSON: resident memory after each phase, and
the times of loading and of the first run.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

HEAVY = ("torch", "timm", "onnx", "safetensors")


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Load and run as the request says; memory in bytes (None where there is no /proc), times in ms."""
    begin = time.perf_counter()
    points: list[tuple[float, int, str]] = []

    def note(where: str) -> int | None:
        resident = status_bytes("VmRSS")
        if resident is not None:
            points.append((1000 * (time.perf_counter() - begin), resident, where))
        return resident

    import numpy as np

    backend = importlib.import_module(request["backend"])
    backend.versions()  # imports the runtime
    images = np.load(request["images"], mmap_mode="r", allow_pickle=False)
    imported = note("imported")
    start = time.perf_counter()
    runner = backend.load(
        Path(request["folder"]),
        threads=request["threads"],
        precision=request["precision"],
        file=request["file"],
        weight_bits=request["weight_bits"],
    )
    load_ms = 1000 * (time.perf_counter() - start)
    loaded = note("loaded")
    first_run_ms = 0.0
    for index, effort in enumerate(request["efforts"] * request["rounds"]):
        image = np.array(images[index % len(images)])[None]
        start = time.perf_counter()
        runner.run(image, effort=effort)
        first_run_ms = first_run_ms or 1000 * (time.perf_counter() - start)
        note(f"run {index + 1}")
    return {
        "imported_bytes": imported,
        "loaded_bytes": loaded,
        "peak_bytes": peak_bytes(points),
        "load_ms": load_ms,
        "first_run_ms": first_run_ms,
        "points": points,
        "heavy": [name for name in HEAVY if name in sys.modules],
    }


def peak_bytes(points: list[tuple[float, int, str]]) -> int | None:
    """Return the high-water mark, not below what was seen: the kernel counts pages per core and adds them up late."""
    told = status_bytes("VmHWM")
    return told and max(told, *(resident for _, resident, _ in points), 0)


def status_bytes(field: str) -> int | None:
    """Return a memory field of this process; VmHWM, unlike getrusage, knows nothing of the process that started it."""
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
