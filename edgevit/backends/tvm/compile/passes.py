"""What the compiler does to kernels before LLVM: they are final, so only what makes functions to call of them.

Its usual passes search for loops to part, conditions to move and values to share, which kernels have none of that LLVM
does not find; they took two thirds of the time to compile a model.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import compilation_pipeline

PIPELINE = "edgevit"


def _pipeline() -> tuple[Any, Any, Any]:
    """Return the passes over all kernels, and those that finish them for the host and a device (there is none)."""
    passes = tvm.ir.transform.Sequential(
        [
            tirx.transform.FlattenBuffer(),
            tirx.transform.StmtSimplify(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
    )
    return passes, compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)


def compile_kernels(functions: dict[str, Any], target: Any) -> Any:
    """Compile functions by name, each alone, as a model's are compiled."""
    made = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    return tvm.compile(tvm.IRModule(made), target=tvm.target.Target(dict(target)), tir_pipeline=PIPELINE)
