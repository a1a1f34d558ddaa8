"""What a pair of apache-tvm and apache-tvm-ffi must be able to do, step by step; run as a process of its own.

Some pairs that pip installs together end the process with a segmentation fault. Every step is announced on standard
output before it is taken, so that whoever started this process can tell which one ended it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

TARGET = {"kind": "llvm"}
SIZE = 16


def _import() -> None:
    import tvm  # noqa: F401


def _save() -> None:
    """Write a module as JSON and read it back."""
    import tvm

    module = _gated()
    tvm.ir.assert_structural_equal(tvm.ir.load_json(tvm.ir.save_json(module)), module)


ADD = """
@T.prim_func(s_tir=True)
def add(x: T.Buffer((16,), "float32"), y: T.Buffer((16,), "float32")):
    with T.sblock("root"):
        T.reads(x[0:16])
        T.writes(y[0:16])
        for i in range(16):
            with T.sblock("y"):
                v = T.axis.spatial(16, i)
                y[v] = x[v] + T.float32(1.0)
"""


def _tensorize() -> None:
    """Replace a loop by an intrinsic."""
    import tvm
    from tvm import s_tir

    # Three functions of their own: buffers of one may not appear in another.
    name, (pattern, body, function) = "edgevit_trial", (tvm.script.from_source(ADD) for _ in range(3))
    s_tir.TensorIntrin.register(name, pattern, body, override=True)
    schedule = s_tir.Schedule(function)
    (loop,) = schedule.get_loops(schedule.get_sblock("y"))
    schedule.tensorize(loop, name)


def _run() -> None:
    """Compile a module with a branch and run it both ways."""
    import tvm
    import tvm_ffi
    from tvm import relax

    passes = [relax.transform.ComputePrimValue(), relax.transform.VMShapeLower(), relax.transform.AttachGlobalSymbol()]
    pipeline = tvm.transform.Sequential(passes)
    executable = relax.build(_gated(), tvm.target.Target(TARGET), relax_pipeline=pipeline)
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    raw = np.zeros(2 * SIZE, dtype=np.float32)
    start = (-raw.ctypes.data % 64) // 4
    values = raw[start : start + SIZE]
    for first, expected in ((1.0, 2.0), (-1.0, -1.0)):
        values[:] = first
        main(tvm_ffi.from_dlpack(values))
        if values[1] != expected:
            raise RuntimeError(f"a branch gave {values[1]}, expected {expected}")


def _gated() -> Any:
    """Return main(x): where x[0] > 0, x[1] += 1, in a function of its own."""
    import tvm
    from tvm import relax, tirx

    def kernel(build: Callable[[Any], Any], name: str, result: Any = None) -> Any:
        x = tirx.decl_buffer((SIZE,), "float32", "x")
        return tirx.PrimFunc([x], build(x), ret_type=result).with_attr("global_symbol", name)

    kind = relax.TensorType((SIZE,), "float32")
    zero, one = (tirx.const(v, "int32") for v in (0, 1))
    block = relax.BlockBuilder()
    boolean = tvm.ir.PrimType("bool")
    gate = kernel(lambda x: tirx.Return(x[zero] > tirx.const(0.0, "float32")), "gate", boolean)
    body = kernel(lambda x: tirx.BufferStore(x, x[one] + tirx.const(1.0, "float32"), [one]), "body")
    names = [block.add_func(function, name) for function, name in ((gate, "gate"), (body, "body"))]
    x = relax.Var("x", kind)
    with block.function("branch", [x], private=True, attrs={"relax.force_pure": 1}):
        block.emit(relax.Call(names[1], [x], ty_args=[relax.TupleType([])]))
        branch = block.emit_func_output(x)
    x = relax.Var("x", kind)
    with block.function("main", [x], attrs={"relax.force_pure": 1, "global_symbol": "main"}):
        is_open = block.emit(relax.Call(names[0], [x], ty_args=[boolean]))
        sides = [relax.SeqExpr([], side) for side in (relax.Call(branch, [x]), x)]
        block.emit_func_output(block.emit(relax.If(is_open, *sides)))
    return block.finalize()


STEPS: dict[str, Callable[[], None]] = {"import": _import, "save": _save, "tensorize": _tensorize, "run": _run}
DONE = "done"


def main() -> None:
    for name, step in STEPS.items():
        print(name, flush=True)
        step()
    print(DONE, flush=True)


if __name__ == "__main__":
    main()
