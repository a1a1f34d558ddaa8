"""Runtimes: each backend is a module that fits `Backend`, listed by name; importing one imports no runtime yet.

Building reads a `Source` in the form that the backend understands: an ONNX model, or for TVM the Program itself.
Loading and running need numpy and the runtime only.
"""

from __future__ import annotations

import importlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edgevit.errors import ImagesError, RuntimeMissingError

if TYPE_CHECKING:
    import onnx

    from edgevit.program.program import Program
    from edgevit.schema.quant_plan import QuantPlan
    from edgevit.schema.target import Target

ONNX_MODULES = MappingProxyType(
    {"onnxruntime": "edgevit.backends.onnxruntime", "openvino": "edgevit.backends.openvino"},
)
MODULES = MappingProxyType({**ONNX_MODULES, "tvm": "edgevit.backends.tvm"})
INSTALL = MappingProxyType(
    {
        "onnxruntime": "pip install edgevit",
        "openvino": "pip install 'edgevit[openvino]'",
        "tvm": "pip install 'edgevit[tvm]'",
    }
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a backend builds, in every form that one of them reads.

    Attributes:
        program: the Program as it is lowered, smoothing folded in.
        plan: how it is quantized (None: not at all).
        model: both of them as an ONNX graph.
        target: the device.
        tune_s: CPU seconds to search for TVM's register tiles; 0: the default ones.
    """

    program: Program
    plan: QuantPlan | None
    model: onnx.ModelProto
    target: Target
    tune_s: float = 0.0


class Runner(Protocol):
    """A loaded model, one image at a time."""

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Run one image.

        Args:
            image: uint8 RGB `[1, height, width, 3]`.
            effort: added to every gate logit; 0 = as calibrated, +-inf opens or closes all. No effect without gates.

        Returns:
            logits float32 `[1, classes]` and gates uint8 `[branches]`, 1 = the branch ran; both own their memory.

        Raises:
            ImagesError: `image` is of another shape or type.
        """
        ...

    def close(self) -> None:
        """Free the model; the runner cannot run after it."""
        ...


class Backend(Protocol):
    """What a module in this package offers."""

    NAME: str
    FORMATS: tuple[str, ...]

    def versions(self) -> dict[str, str]:
        """Name and version of the runtime's packages.

        Raises:
            RuntimeMissingError: the runtime is not installed.
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
        """The runtime's settings, without threads, that `load` uses for this model."""
        ...


class OnnxBackend(Backend, Protocol):
    """A backend that reads ONNX models, whoever made them."""

    def compile(self, model: onnx.ModelProto, folder: Path, *, formats: Sequence[str] = ...) -> tuple[str, ...]:
        """Write `model` in these formats into an existing folder and return the file names.

        Equal models give equal bytes; `model` is not changed.
        """
        ...

    def linear_kernels(self, model: onnx.ModelProto, *, precision: str = "f32") -> tuple[tuple[str, bool], ...]:
        """Every kernel with weights of a Linear in the runtime's own graph of `model`: (node name, runs as int8)."""
        ...


def backend(name: str) -> Backend:
    """Return the backend `name`.

    Raises:
        RuntimeMissingError: no backend of that name.
    """
    if name not in MODULES:
        raise RuntimeMissingError(f"unknown runtime {name!r}; known: {', '.join(MODULES)}")
    return cast(Backend, importlib.import_module(MODULES[name]))


def onnx_backend(name: str) -> OnnxBackend:
    """Return the backend `name`, which reads ONNX.

    Raises:
        RuntimeMissingError: no such backend of that name.
    """
    if name not in ONNX_MODULES:
        raise RuntimeMissingError(f"no runtime {name!r} that reads ONNX; known: {', '.join(ONNX_MODULES)}")
    return cast(OnnxBackend, backend(name))


def missing(name: str, error: ImportError) -> RuntimeMissingError:
    """Build the error for a runtime that cannot be imported."""
    return RuntimeMissingError(f"{name} cannot be imported ({error}); install it: {INSTALL[name]}")


def lacks_vnni() -> bool:
    """Whether this is an x86 CPU that adds int8 products in 16 bits, which 8-bit weights can overflow."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in flags


def feed(image: np.ndarray, effort: float, *, shape: tuple[int, ...], gated: bool) -> dict[str, np.ndarray]:
    """Build a model's inputs; refuse what a runtime would refuse in its own words, or silently convert.

    Raises:
        ImagesError: not uint8, or another shape than the model's.
        ValueError: `effort` is nan.
    """
    if image.dtype != np.uint8 or image.shape != shape:
        raise ImagesError(
            f"the model takes a uint8 RGB image of shape {list(shape)}, got {image.dtype} {list(image.shape)}; "
            "resize and crop as the manifest's preprocessing says"
        )
    if math.isnan(effort):
        raise ValueError("effort must be a number, got nan")
    inputs = {"image": image}
    if gated:
        inputs["effort"] = np.array(effort, dtype=np.float32)
    return inputs
