from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.errors import BoundError
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_program

import_or_skip()

import tvm  # noqa: E402
from tvm import relax, tirx  # noqa: E402

from edgevit.backends.tvm.codegen import code  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import Lowered, lower  # noqa: E402
from edgevit.backends.tvm.inspect.bytecode import bound, calls  # noqa: E402
from edgevit.backends.tvm.inspect.shipped import Shipped, read  # noqa: E402
from edgevit.backends.tvm.run import runner  # noqa: E402
from edgevit.backends.tvm.run.runner import LIBRARY, MANIFEST  # noqa: E402

PROGRAM = tiny_program(gated=True, skip=True)


def workspaces(text: str) -> int:
    """Calls of the runtime's allocator in LLVM code: each first loads the pointer to it."""
    return text.count("load ptr, ptr @__TVMBackendAllocWorkspace")


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    return lower(PROGRAM, isa("avx2"))


def test_the_bound_is_read_from_the_file_that_ships(lowered: Lowered, tmp_path: Path) -> None:
    library.write(lowered, tmp_path)
    memory = bound(read(tmp_path / LIBRARY), runner.read_manifest(tmp_path / MANIFEST))
    assert memory.arena == 4 * lowered.arena
    assert memory.weights == sum(values.nbytes for _, values in lowered.weights)
    assert memory.activations == memory.arena + 32 * 32 * 3 + 4 + 4 * 10 + 4


def test_a_library_that_asks_for_memory_has_no_bound(lowered: Lowered) -> None:
    about, plain = library.manifest(lowered), Shipped(text="", symbols=frozenset(), asked=frozenset({"memcpy", "expf"}))
    assert bound(plain, about).arena == 4 * lowered.arena
    for name in ("malloc", "mmap", "TVMBackendAllocWorkspace", "fopen"):
        with pytest.raises(BoundError, match=f"the library asks for {name}, which may allocate"):
            bound(replace(plain, asked=plain.asked | {name}), about)


def test_every_branch_is_one_call_that_a_gate_decides_about(lowered: Lowered) -> None:
    called = calls(str(library.build(lowered)["as_text"]()))
    assert called["main"].count("vm.builtin.read_if_cond") == 4
    bodies = [name for name in called if name.startswith("run_b")]
    assert {name for name in called["main"] if name.startswith("run_b")} == set(bodies)


@pytest.mark.parametrize("name", ["avx2", "avx512", "neon"])
def test_kernels_take_no_workspace(name: str) -> None:
    wide = tiny_program(dim=192, heads=3, gated=True, skip=True)
    (native,) = [m for m in library.build(lower(wide, isa(name))).mod.imports if m.kind == "llvm"]
    assert not workspaces(str(native.inspect_source("ll")))


def test_a_kernel_that_takes_workspace_is_seen() -> None:
    x = tirx.decl_buffer((1024,), "float32", "x")
    large = tirx.decl_buffer((1024,), "float32", "large")
    i, j = (tirx.Var(n, "int32") for n in "ij")
    copies = [
        tirx.For(n, code.integer(0), code.integer(1024), tirx.ForKind.SERIAL, tirx.BufferStore(to, value, [n]))
        for n, to, value in ((i, large, x[i]), (j, x, large[1023 - j]))
    ]
    function = tirx.PrimFunc([x], tirx.SeqStmt([tirx.AllocBuffer(large), *copies])).with_attr("global_symbol", "f")
    compiled = tvm.compile(tvm.IRModule({"f": function}), target=tvm.target.Target({"kind": "llvm"}))
    assert workspaces(str(compiled.mod.inspect_source("ll")))


def test_a_module_that_allocates_has_no_bound(lowered: Lowered) -> None:
    block = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((16,), "float32"))
    with block.function("main", [x]):
        with block.dataflow():
            y = block.emit_output(relax.op.add(x, x))
        block.emit_func_output(y)
    allocating = relax.build(block.finalize(), tvm.target.Target({"kind": "llvm"}))
    text = str(allocating["as_text"]())
    with pytest.raises(BoundError, match=r"main calls vm\.builtin\.alloc_storage"):
        bound(Shipped(text=text, symbols=frozenset()), library.manifest(lowered))


@pytest.mark.parametrize(("text", "told"), [("@other:\n", "no function main"), ("@main:\n  call  f in: ", "calls f")])
def test_what_is_not_known_has_no_bound(lowered: Lowered, text: str, told: str) -> None:
    with pytest.raises(BoundError, match=told):
        bound(Shipped(text=text, symbols=frozenset()), library.manifest(lowered))


@pytest.mark.parametrize("name", ["__TVMBackendAllocWorkspace", "malloc", "_Znwm"])
def test_a_kernel_that_could_allocate_has_no_bound(lowered: Lowered, name: str) -> None:
    text, symbols = "@main:\n  call  f in: ", frozenset({"__tvm_ffi_f"})
    assert bound(Shipped(text=text, symbols=symbols), library.manifest(lowered)).arena > 0
    with pytest.raises(BoundError, match=f"can allocate, by {name}"):
        bound(Shipped(text=text, symbols=symbols | {name}), library.manifest(lowered))
