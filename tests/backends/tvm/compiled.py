"""Run single kernels: compile a function over an arena and call it on numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi

from edgevit.backends.tvm.codegen.schedules import ISAS, Isa, isa
from edgevit.backends.tvm.compile.passes import compile_kernels
from edgevit.backends.tvm.run.runner import aligned
from edgevit.measure.environment import cpu_flags

AVX2 = isa("avx2")
# Instruction sets that run here.
HERE = tuple(name for name, one in ISAS.items() if cpu_flags().issuperset(one.flags))


def call(function: Any, *arrays: np.ndarray, isa: Isa = AVX2) -> Any:
    """Compile `function` and run it on copies of the arrays, which then replace the arrays' contents."""
    compiled = kernel(function, isa)
    copies = [aligned(a.shape, a.dtype) for a in arrays]
    for copy, array in zip(copies, arrays, strict=True):
        copy[...] = array
    result = compiled(*[tvm_ffi.from_dlpack(copy) for copy in copies])
    for copy, array in zip(copies, arrays, strict=True):
        array[...] = copy
    return result


def kernel(function: Any, isa: Isa = AVX2) -> Any:
    """Compile `function`."""
    return compile_kernels({"kernel": function}, isa.target)["kernel"]


def matrix(memory: np.ndarray, place: Any) -> np.ndarray:
    """A place of an arena as a writable `[rows, width]` view."""
    flat = memory[place.offset : place.offset + place.rows * place.stride]
    view: np.ndarray = flat.reshape(place.rows, place.stride)[:, : place.width]
    return view
