"""Run a compiled model: one shared library, its weights mapped from a file, one piece of memory.

Needs numpy only; what the virtual machine of TVM runs, in this process or from older builds, also tvm_ffi and
libtvm_runtime.so. The compiler is never loaded.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import Answer
from edgevit.backends.inputs import feed
from edgevit.backends.tvm.run.canary import versions
from edgevit.backends.tvm.run.plugin import Plugin
from edgevit.backends.tvm.run.pool import Pool
from edgevit.backends.tvm.run.runtime import runtime
from edgevit.errors import BundleError
from edgevit.schema.manifest import BundleFile
from edgevit.util import limits, strict_json

LIBRARY, WEIGHTS, MANIFEST = "model.so", "model.weights", "model.json"
SCHEMA = 3
MACHINE_SCHEMA = 2  # before libraries needed no virtual machine of TVM
UNCHECKED_SCHEMA = 1  # before files were listed: only the bundle's own manifest tells whether they changed
ALIGN_BYTES = 64
MOST_THREADS = 64
CPUINFO = Path("/proc/cpuinfo")
CPU, NAIVE = 1, 1  # kDLCPU; an allocator that is never asked for anything


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A flat float32 array in the weights file."""

    name: str
    offset_bytes: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a library must be called with.

    Attributes:
        schema: of this file.
        tvm: version of apache-tvm that compiled it, and that must run it.
        isa: name of the instruction set.
        machines: names of the architecture, as the operating system gives them.
        flags: what the CPU must have, as /proc/cpuinfo names them.
        height: of the image.
        width: of the image.
        classes: length of `logits`.
        branches: length of `gates`.
        points: length of `tokens`, patch tokens left after each point where they merge; 0: their number is fixed.
        arena: float32 elements of the activation arena, every thread's own ones included.
        weights: parameters in the order in which `main` takes them.
        memory: bytes that the library is given, arena and outputs included; 0 where TVM's virtual machine runs it.
        threads: how many the kernels are shared out among.
        files: the library and the weights, with what they must be.
        sha256: of this file without it.
    """

    schema: int
    tvm: str
    isa: str
    machines: tuple[str, ...]
    flags: tuple[str, ...]
    height: int
    width: int
    classes: int
    branches: int
    arena: int
    weights: tuple[Parameter, ...]
    memory: int = 0
    threads: int = 1
    points: int = 0
    files: tuple[BundleFile, ...] = ()
    sha256: str = ""


class TvmRunner:
    """A compiled model in this process; see `edgevit.backends.Runner`."""

    def __init__(
        self, library: Any, manifest: Manifest, weights: Sequence[np.ndarray], threads: int | None = None
    ) -> None:
        self._machine = library["vm_load_executable"]()
        self._machine["vm_initialization"](CPU, 0, NAIVE)
        self._main = self._machine["main"]
        self._shape = (1, manifest.height, manifest.width, 3)
        self._image = aligned(self._shape, np.uint8)
        self._effort = aligned((), np.float32)
        self._logits = aligned((1, manifest.classes), np.float32)
        self._gates = aligned((manifest.branches,), np.uint8)
        self._tokens = aligned((manifest.points,), np.int32)
        arena = aligned((manifest.arena,), np.float32)
        counted = [self._tokens] if manifest.points else []
        arrays = [self._image, self._effort, arena, self._logits, self._gates, *counted, *weights]
        for array in arrays:
            # The runtime crashes on what is not aligned.
            assert array.ctypes.data % ALIGN_BYTES == 0
        self._arguments = [runtime().from_dlpack(array) for array in arrays]
        self._pool = Pool(threads or manifest.threads) if manifest.threads > 1 else None

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return self.answer(image, effort)[:2]

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        inputs = feed(image, effort, shape=self._shape, gated=True)
        self._image[...] = inputs["image"]
        self._effort[...] = inputs["effort"]
        if self._pool is None:
            self._main(*self._arguments)
        else:
            self._pool.call(self._main, *self._arguments)
        return Answer(self._logits.copy(), self._gates.copy(), self._tokens.copy())

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        del self._main, self._machine, self._arguments


class LibraryRunner:
    """A compiled model's own library in this process, which nothing of TVM runs; see `edgevit.backends.Runner`."""

    def __init__(self, path: Path, manifest: Manifest, weights: np.ndarray, threads: int | None = None) -> None:
        self._plugin = Plugin(path)
        told = self._plugin.about
        sizes = {
            "memory_bytes": manifest.memory,
            "arena_bytes": 4 * manifest.arena,
            "weights_bytes": weights.size,
            "image_bytes": 3 * manifest.height * manifest.width,
            "classes": manifest.classes,
            "branches": manifest.branches,
            "points": manifest.points,
            "threads": manifest.threads,
        }
        for name, value in sizes.items():
            if (own := getattr(told, name)) != value:
                raise BundleError(f"{path} has {name} = {own}, model.json says {value}; unpack the bundle again")
        self._shape = (1, manifest.height, manifest.width, 3)
        self._image = aligned(self._shape, np.uint8)
        self._memory = aligned((manifest.memory,), np.uint8)
        self._weights = weights  # stay mapped
        self._logits = np.empty((1, manifest.classes), np.float32)
        self._gates = np.empty((manifest.branches,), np.uint8)
        self._model = self._plugin.init(_address(self._memory), manifest.memory, _address(weights), weights.size)
        self._threads = threads or manifest.threads
        if self._threads > 1:
            self._plugin.start(self._model, self._threads)

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return self.answer(image, effort)[:2]

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        inputs = feed(image, effort, shape=self._shape, gated=True)
        self._image[...] = inputs["image"]
        given = _address(self._image), float(inputs["effort"]), _address(self._logits), _address(self._gates)
        self._plugin.run(self._model, *given)
        return Answer(self._logits.copy(), self._gates.copy(), self._plugin.tokens(self._model))

    @property
    def memory(self) -> np.ndarray:
        """Bytes of the model's memory, as the last run left them; read only."""
        return self._memory

    def close(self) -> None:
        if self._threads > 1:
            self._plugin.start(self._model, 1)
            self._threads = 1

    def __del__(self) -> None:
        if getattr(self, "_threads", 1) > 1:  # they use memory that goes now
            self.close()


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def load(folder: Path, threads: int | None = None) -> TvmRunner | LibraryRunner:
    """Load what `library.write` wrote, for as many threads as it was compiled for, or fewer.

    Size and hash of every file are looked at before it is mapped or loaded.

    Raises:
        BundleError: a file is missing or damaged, or not for this machine; or one that needs another TVM.
        RuntimeMissingError: TVM is not installed, and the build is one of those that need it.
    """
    manifest = read_manifest(folder / MANIFEST)
    path = folder / LIBRARY
    alone = manifest.schema == SCHEMA
    check_machine(manifest, manifest.tvm if alone else versions()["apache-tvm"])
    check_file(path, manifest)
    check_file(folder / WEIGHTS, manifest)
    if alone:
        return LibraryRunner(path, manifest, _mapped(folder / WEIGHTS, manifest), threads)
    weights = map_weights(folder / WEIGHTS, manifest)
    try:
        library = runtime().load_module(str(path.resolve()))
    except (OSError, RuntimeError) as error:
        raise BundleError(f"TVM {manifest.tvm} cannot load {path}: {error}; unpack the bundle again") from error
    return TvmRunner(library, manifest, weights, threads)


def read_manifest(path: Path) -> Manifest:
    """Read `model.json`.

    Raises:
        BundleError: missing, changed, or not what is written there.
    """
    faults: list[str] = []
    try:
        raw = limits.read_regular(path, limits.MODEL_JSON_BYTES)
        data = strict_json.parse(raw)
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {error}; unpack the bundle again") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(data, dict) and schema not in (SCHEMA, MACHINE_SCHEMA, UNCHECKED_SCHEMA):
        raise BundleError(f"{path} has schema {strict_json.shown(schema)}, this version reads {SCHEMA}; build again")
    found = strict_json.from_data(Manifest, data, faults, "model")
    if found is None:
        raise BundleError(f"{path} has faults:\n  " + "\n  ".join(strict_json.first(faults)))
    if not 1 <= found.threads <= MOST_THREADS:
        raise BundleError(f"{path} has threads = {found.threads}, allowed: 1 to {MOST_THREADS}; build again")
    sizes = [
        ("height", found.height, 1, limits.IMAGE_SIDE),
        ("width", found.width, 1, limits.IMAGE_SIDE),
        ("classes", found.classes, 1, limits.CLASSES),
        ("branches", found.branches, 0, limits.BRANCHES),
        ("points", found.points, 0, limits.BRANCHES),
        ("arena in bytes", 4 * found.arena, 0, limits.ARENA_BYTES),
        ("memory", found.memory, 0, limits.ARENA_BYTES),
    ]
    wrong = [f"{what} {value} ({low} to {most})" for what, value, low, most in sizes if not low <= value <= most.value]
    if wrong:
        raise BundleError(f"{path} claims what no model has: {', '.join(wrong)}; unpack the bundle again")
    if (schema != UNCHECKED_SCHEMA or found.files) and not strict_json.seal_holds(raw, found.sha256):
        raise BundleError(f"{path} was changed since it was written: its sha256 is another; unpack the bundle again")
    return found


def check_file(path: Path, manifest: Manifest) -> None:
    """Hold a file against what `model.json` lists.

    Raises:
        BundleError: missing, not listed, of another size, or changed.
    """
    if manifest.schema == UNCHECKED_SCHEMA and not manifest.files:
        return
    listed = next((file for file in manifest.files if file.path == path.name), None)
    if listed is None:
        raise BundleError(f"model.json beside {path} does not list it; build again")
    try:
        size = path.stat().st_size
        if size != listed.bytes:
            raise BundleError(f"{path} has {size} bytes, model.json says {listed.bytes}; unpack the bundle again")
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error}; unpack the bundle again") from error
    if digest != listed.sha256:
        raise BundleError(f"{path} was changed since it was written: its sha256 is another; unpack the bundle again")


def map_weights(path: Path, manifest: Manifest) -> list[np.ndarray]:
    """Map the weights: pages are read when a branch first runs, and belong to the file.

    Raises:
        BundleError: missing, of another size than the manifest says, or not at addresses that kernels accept.
    """
    mapped = _mapped(path, manifest)
    parts = [mapped[p.offset_bytes : p.offset_bytes + 4 * p.elements] for p in manifest.weights]
    return [np.asarray(part).view(np.float32) for part in parts]


def _mapped(path: Path, manifest: Manifest) -> np.ndarray:
    expected = 0
    for part in manifest.weights:
        if part.offset_bytes != expected or part.offset_bytes % ALIGN_BYTES or part.elements < 1:
            raise BundleError(f"the manifest of {path} puts {part.name} at a wrong place; unpack the bundle again")
        expected += 4 * part.elements
    try:
        # Copy on write: the runtime takes no read-only arrays, and a page that nobody writes is never copied.
        mapped: np.ndarray = np.memmap(path, dtype=np.uint8, mode="c")
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read the weights {path}: {error}; unpack the bundle again") from error
    if mapped.size != expected:
        raise BundleError(f"{path} has {mapped.size} bytes, the manifest says {expected}; unpack the bundle again")
    return mapped


def check_machine(manifest: Manifest, installed: str, cpuinfo: Path = CPUINFO) -> None:
    """Refuse what would end in an illegal instruction or in a library that the runtime cannot read.

    Raises:
        BundleError: another architecture, a CPU without the instructions, or another TVM version.
    """
    machine = platform.machine()
    if machine not in manifest.machines:
        raise BundleError(f"this library is for {' or '.join(manifest.machines)}, this machine is {machine}")
    if cpuinfo.is_file():
        present = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
        lacking = [flag for flag in manifest.flags if flag not in present]
        if lacking:
            raise BundleError(f"this library needs a CPU with {' '.join(lacking)}; build for a target that has less")
    if installed != manifest.tvm:
        raise BundleError(
            f"this library was compiled by apache-tvm {manifest.tvm} and runs with no other; installed is {installed}: "
            f"pip install apache-tvm=={manifest.tvm}"
        )


def aligned(shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """Return zeros at an address that kernels accept."""
    count = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = np.zeros(count + ALIGN_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGN_BYTES
    array: np.ndarray = raw[start : start + count].view(kind).reshape(shape)
    return array
