"""Runtimes, a folder each: `X/__init__.py` fits `Backend`, `X/desk.py` fits `Desk`; the table names the folders.

A `Backend` is what a device has of a runtime: it loads and runs a model and tells its times, with numpy and the runtime
only. Beside that stand `build`, and what can be known at once: what it refuses in a target, what this machine lacks.
The `Desk` is what the machine that builds asks of it: what a build will take, and the evidence that the verifiers
judge. Importing either imports no runtime yet. A build reads a `Source` in the form that the backend understands: an
ONNX model, or the Program itself.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from edgevit.errors import RuntimeMissingError
from edgevit.schema.memory_bound import BoundDetail, CappedRun, PathMemory

if TYPE_CHECKING:
    import onnx

    from edgevit.bundle.guide import Guide
    from edgevit.measure.branch_times import Trace
    from edgevit.program.program import Program
    from edgevit.schema.quant_plan import QuantPlan
    from edgevit.schema.target import Target
    from edgevit.verify.pairs import Pairs

# The one place that lists them, from the most common; a line here and a folder is all that a runtime is.
MODULES: dict[str, str] = {
    "onnxruntime": "edgevit.backends.onnxruntime",
    "openvino": "edgevit.backends.openvino",
    "tvm": "edgevit.backends.tvm",
}
DEFAULT = "onnxruntime"  # what comes with edgevit itself
# Nobody is called: ONNX Runtime and OpenVINO report their use over the network, and keep a number of this machine in
# the home folder. Here, because it must be said before either is imported; processes that are started inherit the one
# and import this package for the other.
SILENCED = ("openvino_telemetry",)  # an import of it fails; OpenVINO takes a stub
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
for _name in SILENCED:
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
# Runs a fresh Python with some arguments in a folder; on another device, that device's.
Start = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]
# (image, effort) to (executed nodes as (name, operator), gates `[branches]`).
Executed = Callable[[np.ndarray, float], tuple[Sequence[tuple[str, str]], np.ndarray]]

# (image, effort) to (MACs of every matrix kernel after the stem by name, gates `[branches]`, tokens `[points]`).
KernelMacs = Callable[[np.ndarray, float], tuple[Mapping[str, int], np.ndarray, np.ndarray]]


# (image, effort) to (the answer, the pairs of tokens that were merged at every point).
Merged = Callable[[np.ndarray, float], "tuple[Answer, tuple[Pairs, ...]]"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a backend builds, in every form that one of them reads.

    Attributes:
        program: the Program as it is lowered, smoothing folded in.
        plan: how it is quantized (None: not at all).
        model: both of them as an ONNX graph.
        target: the device.
        tune_s: CPU seconds to search for the fastest register tiles of compiled kernels; 0: the default ones.
    """

    program: Program
    plan: QuantPlan | None
    model: onnx.ModelProto
    target: Target
    tune_s: float = 0.0


class Answer(NamedTuple):
    """All outputs of a run: logits float32 `[1, classes]`, gates uint8 `[branches]`, tokens int32 `[points]`.

    `tokens` has the patch tokens left after each point where they merge, if their number follows the image, else none.
    """

    logits: np.ndarray
    gates: np.ndarray
    tokens: np.ndarray


NO_TOKENS: np.ndarray = np.zeros(0, np.int32)


class Runner(Protocol):
    """A loaded model, one image at a time."""

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Run one image.

        Args:
            image: uint8 RGB `[1, height, width, 3]`.
            effort: added to every gate logit; 0 = as calibrated, +-inf opens or closes all. It raises thresholds of
                merges too: +inf merges as few tokens as may be, -inf as many. Without either it has no effect.

        Returns:
            logits float32 `[1, classes]` and gates uint8 `[branches]`, 1 = the branch ran; both own their memory.

        Raises:
            ImagesError: `image` is of another shape or type.
        """
        ...

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        """Run one image as `run` does, and return how many tokens there were too."""
        ...

    def close(self) -> None:
        """Free the model; the runner cannot run after it."""
        ...


class Backend(Protocol):
    """What the module `X/__init__.py` offers: a runtime as a device has it, and `build`.

    Attributes:
        NAME: as targets and manifests name it; for a runtime of Python the name of its module too.
        FILES: format of a target -> the file that `build` writes for it, in the order in which `load` prefers them.
        BESIDE: files with a model's weights, which are loaded with it.
        PACKAGES: Python packages that it comes in.
        INSTALL: the command that installs them.
        WHEELS: packages to unpack on a device that has Python and numpy.
        NATIVE: its builds are machine code for one architecture, run by a program of their own (`NativeBackend`);
            else the runtime picks kernels for the CPU where a model is loaded.
        READS_ONNX: it builds any ONNX model (`OnnxBackend`).
        MERGES: it builds Programs that merge tokens.
        FOLLOWING_COSTS: why it saves no time where their number follows the image, a sentence; "" where it does.
    """

    NAME: str
    FILES: Mapping[str, str]
    BESIDE: tuple[str, ...]
    PACKAGES: tuple[str, ...]
    INSTALL: str
    WHEELS: tuple[str, ...]
    NATIVE: bool
    READS_ONNX: bool
    MERGES: bool
    FOLLOWING_COSTS: str

    def versions(self) -> dict[str, str]:
        """Name and version of the runtime's packages.

        Raises:
            RuntimeMissingError: the runtime is not installed.
        """
        ...

    def refused(self, target: Target) -> tuple[str, ...]:
        """Return what the runtime cannot do of what a target asks, a line each: got, allowed. Needs no runtime."""
        ...

    def lacking(self, target: Target, *, installed: bool) -> tuple[str, ...]:
        """Return what this machine lacks to build for a target, each with its remedy; `installed`: PACKAGES are."""
        ...

    def require(self, target: Target, tune_s: float = 0.0) -> None:
        """Refuse at once what `build` would refuse in the end.

        Raises:
            OutputError: no cache folder where one is needed.
            RuntimeMissingError: the runtime or a tool it compiles with is not installed.
            TargetError: nothing can be compiled for the target, or nothing searched in `tune_s` seconds.
        """
        ...

    def build(self, source: Source, folder: Path) -> tuple[str, ...]:
        """Write the model in the target's formats into an existing folder and return the file names.

        Equal sources give equal bytes; `source` is not changed.

        Raises:
            OutputError: the disk refuses.
            RuntimeMissingError: the runtime, or a tool it compiles with, is not installed.
        """
        ...

    def load(
        self, folder: Path, *, threads: int = 1, precision: str = "f32", file: str | None = None, weight_bits: int = 8
    ) -> Runner:
        """Load what `build` wrote. `precision` is that of what stays float; `file` picks one of several formats.

        With `weight_bits` 8 a CPU that would saturate in its int8 kernels takes exact ones.

        Raises:
            BundleError: the file is missing or damaged.
            RuntimeMissingError: the runtime is not installed.
        """
        ...

    def settings(
        self, folder: Path, *, precision: str = "f32", weight_bits: int = 8, file: str | None = None
    ) -> dict[str, Any]:
        """Return the runtime's settings, without threads, that `load` uses for this model."""
        ...

    def trace_branches(
        self,
        model: Path,
        images: np.ndarray,
        *,
        branches: Sequence[str],
        gated: Sequence[str],
        threads: int,
        precision: str,
        weight_bits: int,
    ) -> Trace:
        """Run images uint8 `[n, height, width, 3]` all-open and all-skipped; return the times of the branches.

        The runtime tells them itself, which costs time, and memory over a run is the process's: a fresh one is asked
        (`edgevit.measure.trace`).
        """
        ...

    def arena_peak(
        self, model: Path, image: np.ndarray, settings: Mapping[str, str], start: Start | None = None
    ) -> int | None:
        """Return the most bytes that the runtime's arena has in use all-open, all-skipped or real, in a fresh process.

        None for a runtime without an arena that tells. `start` starts the process (None: on this machine).

        Raises:
            BoundError: the run failed.
        """
        ...


class OnnxBackend(Backend, Protocol):
    """A backend that reads ONNX models, whoever made them."""

    def compile(self, model: onnx.ModelProto, folder: Path, *, formats: Sequence[str] = ...) -> tuple[str, ...]:
        """Write `model` in these formats into an existing folder and return the file names.

        Equal models give equal bytes; `model` is not changed.
        """
        ...

    def linear_kernels(self, model: onnx.ModelProto, *, precision: str = "f32") -> tuple[tuple[str, bool], ...]:
        """Return every kernel with weights of a Linear in the runtime's own graph of `model`: (name, runs as int8)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Build:
    """A finished build, as its backend is asked for evidence.

    Attributes:
        program: the Program, as it was before scales were folded into it.
        plan: how it is quantized (None: not at all).
        model: what was lowered, as an ONNX graph.
        target: the device.
        folder: where `Backend.build` wrote it.
    """

    program: Program
    plan: QuantPlan | None
    model: onnx.ModelProto
    target: Target
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes of a build that is not compiled: of what `holds` says, and its memory bound (None: there is none)."""

    model_bytes: int
    holds: str
    bound_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class MemoryEvidence:
    """What is said of a build's memory, to be held against what its runs took.

    Attributes:
        detail: the bound over every gate path.
        summary: one line for people.
        measured: runs to hold against the bound; None where the runtime does not tell, or nothing ran.
        capped: a run under a cap of the bound, where the runtime can be capped.
        exact: `measured` is the same every time, so that it may be kept in a bundle.
        remark: what is said of this machine and not kept.
    """

    detail: BoundDetail
    summary: str
    measured: tuple[PathMemory, ...] | None = None
    capped: CappedRun | None = None
    exact: bool = False
    remark: str = ""


class Desk(Protocol):
    """What the module `X/desk.py` offers to the machine that builds.

    Attributes:
        GATE_MS: what an `If` and its gate cost at worst, skipped; 0 for a backend that reads ONNX: what is paid beside
            the MACs is measured then, on a graph with empty branches.
        BOUNDED: `predict` gives a memory bound.
    """

    GATE_MS: float
    BOUNDED: bool

    def predict(self, program: Program, plan: QuantPlan | None, target: Target) -> Forecast:
        """Predict a build from its structure; the values of the weights do not matter.

        Raises:
            RuntimeMissingError: only the runtime could tell, and it is not installed.
            TargetError: no kernels for the target.
        """
        ...

    def linear_kernels(self, build: Build) -> tuple[tuple[str, bool], ...]:
        """Return every kernel with weights of a Linear as the runtime runs it: (name, runs as int8)."""
        ...

    def executed(self, build: Build) -> Executed | None:
        """Return a function that runs an image and tells the nodes that ran; None: the runtime does not tell."""
        ...

    def kernel_macs(self, build: Build) -> KernelMacs | None:
        """Return a function that runs an image and tells the MACs of its kernels; None: the runtime does not tell."""
        ...

    def merged(self, build: Build) -> Merged | None:
        """Return the build as a function that tells which tokens it merges; None: the runtime does not tell.

        It answers what the build answers, bit for bit, or what it tells does not count.
        """
        ...

    def memory(self, build: Build, image: np.ndarray, efforts: Mapping[str, float], *, runs: bool) -> MemoryEvidence:
        """Bound the memory of a build, and with `runs` measure it on `image` at these efforts, in fresh processes.

        Raises:
            BoundError: there is no bound.
        """
        ...

    def runner_source(self) -> str:
        """Return the source of the bundle's own `runner/run.py`: `edgevit.bundle.runner` with this runtime's part."""
        ...

    def guide(self) -> Guide:
        """Return what only the runtime's folder knows for a bundle's README.md and requirements.txt."""
        ...


def backend(name: str) -> Backend:
    """Return the backend `name`.

    Raises:
        RuntimeMissingError: no backend of that name.
    """
    return cast(Backend, importlib.import_module(_module(name)))


def desk(name: str) -> Desk:
    """Return what the machine that builds asks of the backend `name`.

    Raises:
        RuntimeMissingError: no backend of that name.
    """
    return cast(Desk, importlib.import_module(f"{_module(name)}.desk"))


def onnx_backend(name: str) -> OnnxBackend:
    """Return the backend `name`, which reads ONNX.

    Raises:
        RuntimeMissingError: no such backend of that name.
    """
    if name not in onnx_backends():
        raise RuntimeMissingError(f"no runtime {name!r} that reads ONNX; known: {', '.join(onnx_backends())}")
    return cast(OnnxBackend, backend(name))


def onnx_backends() -> tuple[str, ...]:
    """Return the names of the backends that read ONNX."""
    return tuple(name for name in MODULES if backend(name).READS_ONNX)


def _module(name: str) -> str:
    if name not in MODULES:
        raise RuntimeMissingError(f"unknown runtime {name!r}; known: {', '.join(MODULES)}")
    return MODULES[name]
