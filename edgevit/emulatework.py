"""What the emulated device runs: the bundle's own runner on its golden inputs, and on images between two marks.

`python -m edgevit.emulatework REQUEST`, in a folder where `images.npy` lies; leaves `answer.json` there. The marks are
system calls that no kernel knows; `edgevit/device/count.c` hears them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import serial
from edgevit.measure.host import environment, snapshot

MARK, BEGIN, END = 0x7FFE, 1, 2
WORST = 1e30
FIRST = (-16.0, 0.0, 16.0)
IMAGES, ANSWER = "images.npy", "answer.json"


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked.

    The request: {"bundle": folder, "runs": [[image, effort]], "between": runs to add, "threads"}. The answer:
    {"golden": [{"path", "error", "gates_equal"}], "gates": one list per run, "environment"}. The first run warms up and
    is counted like the others; those that are added look for gates that no run had yet.
    """
    bundle = Path(request["bundle"])
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    backend, before = manifest["backend"], snapshot()
    run = getattr(_runner(bundle), f"load_{backend}")(manifest, request["threads"])
    golden = []
    for case in manifest["golden"]:
        image, logits, gates = (np.load(bundle / case[key], allow_pickle=False) for key in ("image", "logits", "gates"))
        got_logits, got_gates = run(image, case["effort"])
        # JSON knows no nan: as far off as can be.
        error = float(np.nan_to_num(np.abs(got_logits - logits).max(), nan=WORST, posinf=WORST))
        equal = bool((got_gates == gates).all())
        golden.append({"path": case["path"], "error": error, "gates_equal": equal})
    images = np.load(IMAGES, allow_pickle=False)
    mark = ctypes.CDLL(None).syscall

    def counted(index: int, effort: float) -> list[int]:
        image = images[index : index + 1]
        mark(MARK, BEGIN)
        _, gates = run(image, effort)
        mark(MARK, END)
        return [int(gate) for gate in gates]

    taken = [counted(index, effort) for index, effort in request["runs"]]
    if request["between"]:
        taken += between(lambda effort: counted(0, effort), request["between"])
    machine = environment(
        before,
        snapshot(),
        runtime=backend,
        runtime_version=str(sys.modules[backend].__version__),
        inference_precision=manifest["target"]["inference_precision"],
        threads=request["threads"],
    )
    return {"golden": golden, "gates": taken, "environment": serial.to_data(machine)}


def between(run: Callable[[float], list[int]], count: int) -> list[list[int]]:
    """Run `count` efforts, always halfway between the two neighbours whose gates differ most; returns their gates."""
    known = {effort: run(effort) for effort in FIRST}
    order = list(known.values())
    while len(order) < count:
        efforts = sorted(known)
        gaps = [sum(a != b for a, b in zip(known[low], known[high], strict=True)) for low, high in pairwise(efforts)]
        widest = gaps.index(max(gaps))
        middle = (efforts[widest] + efforts[widest + 1]) / 2
        known[middle] = run(middle)
        order.append(known[middle])
    return order


def _runner(bundle: Path) -> Any:
    """The bundle's own runner as a module."""
    spec = importlib.util.spec_from_file_location("run", bundle / "runner/run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    Path(ANSWER).write_text(json.dumps(main(json.loads(sys.argv[1]))), encoding="utf-8")
