"""All that devices know of particular runtimes: which bundles bring their own C++ runner, and how it is spoken to.

The one file of this room that imports a backend's inside.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.onnxruntime import arena
from edgevit.backends.onnxruntime.branch_trace import kernel_times, traced
from edgevit.backends.tvm.compile.toolchain import MACHINES
from edgevit.backends.tvm.run.process import ProcessRunner, logits_of
from edgevit.backends.tvm.run.runner import LIBRARY, MANIFEST, WEIGHTS, read_manifest
from edgevit.backends.tvm.run.trace import kernel_calls
from edgevit.measure.branch_times import Trace
from edgevit.schema.manifest import Bundle
from edgevit.schema.measurement import HeapPeaks

NATIVE = "runner/native"
RUNNER = f"{NATIVE}/runner"
NO_PYTHON = "none: the C++ runner"  # of the environment that it measures in
# Modules that the Python program starts in processes of their own, so that nobody imports them.
WORKERS = ("edgevit.measure.probe", "edgevit.backends.onnxruntime.branch_trace")
ARENA_WORKER = "edgevit.backends.onnxruntime.arena"
_ALIGN_BYTES = 64
# Runs an emulated machine's Python with these arguments in a folder.
NativeRunner = ProcessRunner  # as a process that takes images one after the other
Start = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]


def runs_natively(backend: str) -> bool:
    """Return whether bundles of a backend bring a C++ runner, which measures without Python on boards and emulators."""
    return backend == "tvm"


def machine_names(arch: str) -> tuple[str, ...]:
    """Return what operating systems call a target's architecture."""
    return tuple(MACHINES.get(arch, (arch,)))


def native_programs(folder: Path) -> tuple[Path, ...]:
    """Return the C++ runner of an opened bundle and the libraries beside it."""
    return tuple(sorted((folder / NATIVE).iterdir()))


def native_model(folder: Path) -> dict[str, Path]:
    """Return the files that the C++ runner loads, by the names it looks for."""
    return {name: folder / name for name in (LIBRARY, WEIGHTS, MANIFEST)}


def native_code(folder: Path) -> tuple[Path, ...]:
    """Return the files of an opened bundle that hold machine code."""
    return (folder / LIBRARY, *native_programs(folder))


def native_outputs(line: Mapping[str, Any], classes: int) -> NDArray[np.float32]:
    """Return logits float32 `[1, classes]` of a line that the C++ runner printed; those it does not tell are inf."""
    return logits_of(line, classes)


def traced_runs(images: int, gated: Sequence[str]) -> list[tuple[int, float]]:
    """Return (image, effort) of the runs that `native_trace` takes, in order."""
    return traced(images, gated)


def native_trace(
    folder: Path, lines: Sequence[Mapping[str, Any]], *, branches: Sequence[str], gated: Sequence[str]
) -> Trace:
    """Read times and memory of every branch off what the C++ runner printed of traced runs.

    Raises:
        ValueError: some are missing.
    """
    weights = [part.name for part in read_manifest(folder / MANIFEST).weights]
    return kernel_times([kernel_calls(line["calls"], weights) for line in lines], branches=branches, gated=gated)


def start_runner(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> NativeRunner:
    """Start the C++ runner of an opened bundle, with one thread, by an emulator's command."""
    program = folder / RUNNER
    program.chmod(program.stat().st_mode | 0o100)  # unpacking a zip may lose it
    return ProcessRunner(
        [*command, str(program.resolve())],
        folder.resolve(),
        read_manifest(folder / MANIFEST),
        threads=1,
        environment=environment,
    )


def native_arena_peak(bundle: Bundle, heap: HeapPeaks | None) -> int | None:
    """Return what a run of the C++ runner holds at most: what it is given, and what it allocates; None: not counted."""
    if heap is None:
        return None
    compiled = read_manifest(bundle.folder / MANIFEST)
    image, effort = 3 * compiled.height * compiled.width, 4
    given = (4 * compiled.arena, image, effort, 4 * compiled.classes, compiled.branches)
    aligned = ((size + _ALIGN_BYTES) // _ALIGN_BYTES * _ALIGN_BYTES for size in given)
    return sum(aligned) + heap.running_bytes - heap.loaded_bytes


def python_arena_peak(bundle: Bundle, image: NDArray[np.uint8], start: Start) -> int | None:
    """Return what the runtime's arena holds at most over all-open, all-skipped and real; None if it has no arena."""
    manifest = bundle.manifest
    if manifest.backend != "onnxruntime":
        return None
    settings = {key: str(value) for key, value in manifest.runtime_settings.items()}
    measured = arena.measure_arena(bundle.folder / manifest.model, image, settings=settings, start=start)
    return max(path.peak_bytes for path in measured)
