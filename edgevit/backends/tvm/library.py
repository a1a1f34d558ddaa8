"""Compile a lowered module to machine code and run it here."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from edgevit.backends import feed
from edgevit.backends.tvm.emit import Lowered

ALIGN_BYTES = 64


def build(lowered: Lowered) -> Any:
    """The module's executable; kernels are final, so only what the virtual machine needs is lowered."""
    passes = tvm.transform.Sequential(
        [
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    target = tvm.target.Target(dict(lowered.isa.target))
    return relax.build(lowered.module, target, relax_pipeline=passes)


class TvmRunner:
    """A compiled model in this process; see `edgevit.backends.Runner`."""

    def __init__(self, executable: Any, lowered: Lowered) -> None:
        spec = lowered.spec
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._main = self._machine["main"]
        self._shape = (1, spec.image.height, spec.image.width, 3)
        self._image = aligned(self._shape, np.uint8)
        self._effort = aligned((), np.float32)
        self._logits = aligned((1, spec.head.classes), np.float32)
        self._gates = aligned((len(spec.branches),), np.uint8)
        arena = aligned((lowered.arena,), np.float32)
        weights = []
        for _, values in lowered.weights:
            weights.append(aligned(values.shape, np.float32))
            weights[-1][...] = values
        arrays = [self._image, self._effort, arena, self._logits, self._gates, *weights]
        self._arguments = [tvm_ffi.from_dlpack(array) for array in arrays]

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        inputs = feed(image, effort, shape=self._shape, gated=True)
        self._image[...] = inputs["image"]
        self._effort[...] = inputs["effort"]
        self._main(*self._arguments)
        return self._logits.copy(), self._gates.copy()

    def close(self) -> None:
        del self._main, self._machine, self._arguments


def aligned(shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """Zeros at an address that kernels accept: the runtime crashes on data that is not aligned to 64 bytes."""
    count = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = np.zeros(count + ALIGN_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGN_BYTES
    array: np.ndarray = raw[start : start + count].view(kind).reshape(shape)
    return array
