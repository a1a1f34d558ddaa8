"""What devices ask of a bundle's backend: whether it brings a C++ runner of its own, and how that is spoken to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends import MODULES, Start, backend
from edgevit.backends.native import NativeProgram, NativeRunner, native_backend
from edgevit.schema.manifest import Bundle
from edgevit.schema.measurement import HeapPeaks
from edgevit.util.machines import MACHINES

NATIVE = "runner/native"
NO_PYTHON = "none: the C++ runner"  # of the environment that it measures in
# Modules that the Python program starts in processes of their own, so that nobody imports them.
WORKERS = ("edgevit.measure.probe", "edgevit.measure.trace")
_ALIGN_BYTES = 64


def runs_natively(name: str) -> bool:
    """Return whether bundles of a backend bring a C++ runner, which measures without Python on boards and emulators."""
    return backend(name).NATIVE


def python_modules(name: str) -> tuple[str, ...]:
    """Return the modules that load a bundle's model with Python; none where its own runner does."""
    return () if runs_natively(name) else (MODULES[name],)


def machine_names(arch: str) -> tuple[str, ...]:
    """Return what operating systems call a target's architecture."""
    return tuple(MACHINES.get(arch, (arch,)))


def program_of(bundle: Bundle) -> NativeProgram:
    """Return the C++ runner of an opened bundle.

    Raises:
        BundleError: what it needs to know of the build cannot be read.
    """
    return native_backend(bundle.manifest.backend).program(bundle.folder.resolve())


def native_programs(folder: Path) -> tuple[Path, ...]:
    """Return the C++ runner of an opened bundle and the libraries beside it."""
    return tuple(sorted((folder / NATIVE).iterdir()))


def native_model(bundle: Bundle) -> dict[str, Path]:
    """Return the files that the C++ runner loads, by the names it looks for."""
    return {name: bundle.folder / name for name in program_of(bundle).files}


def native_code(bundle: Bundle) -> tuple[Path, ...]:
    """Return the files of an opened bundle that hold machine code."""
    loaded = (path for name, path in native_model(bundle).items() if name.endswith(".so"))
    return (*loaded, *native_programs(bundle.folder))


def native_outputs(line: Mapping[str, Any], classes: int) -> NDArray[np.float32]:
    """Return logits float32 `[1, classes]` of a line that the C++ runner printed; those it does not tell are inf."""
    logits = np.full((1, classes), np.inf, dtype=np.float32)
    for label, value in line["top"]:
        logits[0, label] = value
    return logits


def start_runner(command: Sequence[str], bundle: Bundle, environment: Mapping[str, str]) -> NativeRunner:
    """Start the C++ runner of an opened bundle, with one thread, by an emulator's command."""
    own = program_of(bundle)
    program = bundle.folder / own.path
    program.chmod(program.stat().st_mode | 0o100)  # unpacking a zip may lose it
    return own.start([*command, str(program.resolve())], threads=1, environment=environment)


def native_arena_peak(bundle: Bundle, heap: HeapPeaks | None) -> int | None:
    """Return what a run of the C++ runner holds at most: what it is given, and what it allocates; None: not counted."""
    if heap is None:
        return None
    given = program_of(bundle).given_bytes
    aligned = ((size + _ALIGN_BYTES) // _ALIGN_BYTES * _ALIGN_BYTES for size in given)
    return sum(aligned) + heap.running_bytes - heap.loaded_bytes


def python_arena_peak(bundle: Bundle, image: NDArray[np.uint8], start: Start) -> int | None:
    """Return what the runtime's arena holds at most over all-open, all-skipped and real; None if it has no arena."""
    manifest = bundle.manifest
    settings = {key: str(value) for key, value in manifest.runtime_settings.items()}
    return backend(manifest.backend).arena_peak(bundle.folder / manifest.model, image, settings, start)
