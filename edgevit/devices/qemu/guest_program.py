"""What the emulated device runs: the bundle's own runner on its golden inputs, and on images between two marks.

`python -m edgevit.devices.qemu.guest_program REQUEST`, in a folder where `images.npy` lies; leaves `answer.json` there.
The marks are system calls that no kernel knows; `edgevit/devices/qemu/count.c` hears them.
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

from edgevit.backends import backend
from edgevit.measure.environment import environment, snapshot
from edgevit.util import strict_json

MARK, BEGIN, END = 0x7FFE, 1, 2
MOST, BEGIN_ANEW = 1, 2
WORST = 1e30
FIRST = (-16.0, 16.0)
NEAR = 1 / 64
IMAGES, ANSWER = "images.npy", "answer.json"


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked.

    The request: {"bundle": folder, "runs": [[image, effort]], "between": runs to add, "threads"}. The answer:
    {"golden": [{"path", "logits", "gates", "tokens"}], "gates", "tokens": one list per run, empty of tokens where their
    number is fixed, "heap": see `_held`, "environment"}. The first run warms up and is counted like the others; those
    that are added look for gates that no run had yet.
    """
    bundle = Path(request["bundle"])
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    runtime, before = manifest["backend"], snapshot()
    images = np.load(IMAGES, allow_pickle=False)
    runner = _runner(bundle)
    backend(runtime).versions()  # imports it
    heap = [_heap(BEGIN_ANEW)]
    load = getattr(runner, "load_model", None) or getattr(runner, f"load_{runtime}")  # older bundles know every runtime
    run = load(manifest, request["threads"])
    heap += [_heap(MOST), _heap(BEGIN_ANEW)]
    golden = [_golden(bundle, case, run) for case in manifest["golden"]]
    counted, tokens = counting(run, images, ctypes.CDLL(None).syscall)
    taken = [counted(index, effort) for index, effort in request["runs"]]
    taken += between(counted, len(images), request["between"])
    heap.append(_heap(MOST))
    machine = environment(
        before,
        snapshot(),
        runtime=runtime,
        runtime_version=str(sys.modules[runtime].__version__),
        inference_precision=manifest["target"]["inference_precision"],
        threads=request["threads"],
    )
    told = {"golden": golden, "gates": taken, "tokens": tokens, "heap": _held(heap)}
    return {**told, "environment": strict_json.to_data(machine)}


def counting(
    run: Callable[[Any, float], Any], images: Any, mark: Callable[[int, int], Any]
) -> tuple[Callable[[int, float], list[int]], list[list[int]]]:
    """Return a function that runs an image between two marks and tells its gates, and where it keeps its tokens."""
    tokens: list[list[int]] = []

    def counted(index: int, effort: float) -> list[int]:
        image = images[index : index + 1]
        mark(MARK, BEGIN)
        _, gates, *told = run(image, effort)
        mark(MARK, END)
        tokens.append([int(left) for left in told[0]] if told else [])
        return [int(gate) for gate in gates]

    return counted, tokens


def _golden(bundle: Path, case: dict[str, Any], run: Callable[[Any, float], Any]) -> dict[str, Any]:
    """Run a golden input again; the desk compares what comes of it."""
    logits, gates, *tokens = run(np.load(bundle / case["image"], allow_pickle=False), case["effort"])
    # JSON knows no nan: as far off as can be.
    finite = np.nan_to_num(logits[0], nan=WORST, posinf=WORST, neginf=-WORST)
    told = {"path": case["path"], "logits": finite.tolist(), "gates": [int(gate) for gate in gates]}
    return {**told, "tokens": [int(left) for left in tokens[0]] if tokens else None}


def _heap(what: int) -> int:
    """Ask the accountant of `edgevit/devices/qemu/heap.c`; 0 where it was not preloaded."""
    ask = getattr(ctypes.CDLL(None), "edgevit_heap", None)
    if ask is None:
        return 0
    ask.restype = ctypes.c_size_t
    return int(ask(what))


def _held(readings: list[int]) -> dict[str, int] | None:
    """Return bytes over what was held before the model: at most while loading, then, and at most while running."""
    before, loading, loaded, running = readings
    # Asking takes a little too, and comes after the most was told.
    held = {"loading_bytes": max(loading, loaded), "loaded_bytes": loaded, "running_bytes": max(running, loaded)}
    return {name: count - before for name, count in held.items()} if before else None


def between(run: Callable[[int, float], list[int]], images: int, count: int) -> list[list[int]]:
    """Run `count` efforts, always halfway between the two neighbours whose gates differ most; returns their gates.

    When neighbours differ by one gate at most, or are too near each other, it is the next image's turn.
    """
    order: list[list[int]] = []
    for index in range(images):
        known: dict[float, list[int]] = {}
        waiting = list(FIRST)
        while waiting and len(order) < count:
            effort = waiting.pop(0)
            known[effort] = run(index, effort)
            order.append(known[effort])
            waiting = waiting or _middle(known)
    return order


def _middle(known: dict[float, list[int]]) -> list[float]:
    """Return the middle of the widest gap, if there is one."""
    gaps = [
        (sum(a != b for a, b in zip(known[low], known[high], strict=True)), low, high)
        for low, high in pairwise(sorted(known))
        if high - low > NEAR
    ]
    widest, low, high = max(gaps, default=(0, 0.0, 0.0))
    return [(low + high) / 2] if widest > 1 else []


def _runner(bundle: Path) -> Any:
    """Return import the bundle's own runner as a module."""
    spec = importlib.util.spec_from_file_location("run", bundle / "runner/run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    Path(ANSWER).write_text(json.dumps(main(json.loads(sys.argv[1]))), encoding="utf-8")
