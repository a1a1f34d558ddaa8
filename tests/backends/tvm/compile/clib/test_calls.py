"""Bytecode is read as calls and branches, and what is neither is refused."""

from __future__ import annotations

import pytest

from edgevit.backends.tvm.compile.clib.calls import Call, Gated, functions, kernels
from edgevit.errors import BoundError

BRANCH = """@main:
  call  vm.builtin.check_tensor_info in: %0, i1, c[0], c[1] dst: %void
  call  stem in: %0, %1 dst: %void
  call  gate in: %0, %2 dst: %4
  call  vm.builtin.read_if_cond in: %4 dst: %5
  If    %5, 4
  call  run_a in: %0, %3 dst: %6
  call  vm.builtin.copy in: %6 dst: %7
  goto  2
  call  vm.builtin.copy in: %0 dst: %7
  call  head in: %7, %1 dst: %void
  ret   %7

@stem packed_func;

@run_a:
  call  norm in: %0, %1 dst: %void
  ret   %0
"""


def test_registers_become_parameters() -> None:
    read = functions(BRANCH)
    assert list(read) == ["run_a", "main"]  # each behind what it calls
    main = read["main"]
    assert (main.parameters, main.returned) == (4, 0)
    assert main.steps == (
        Call(callee="stem", given=(0, 1)),
        Gated(gate=Call(callee="gate", given=(0, 2)), opened=(Call(callee="run_a", given=(0, 3)),), closed=()),
        Call(callee="head", given=(0, 1)),
    )
    assert kernels(read.values()) == ("norm", "stem", "gate", "head")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("@main:", "@other:", "no function main"),
        ("call  stem in", "call  vm.builtin.alloc_storage in", "no C for vm.builtin.alloc_storage"),
        ("stem in: %0, %1", "stem in: %0, i4", "stem takes more than buffers"),
        ("stem in: %0, %1", "stem in: %0, c[3]", "stem takes more than buffers"),
        ("head in: %7, %1", "head in: %4, %1", "a gate's answer is used as a buffer"),
        ("copy in: %0", "copy in: %1", "register 7 is one buffer or another"),
        ("If    %5", "If    %3", "decided by no gate"),
        ("goto  2", "goto  9", "no two sides"),
        ("goto  2", "call  norm in: %0 dst: %void", "no two sides"),
        ("If    %5, 4", "If    %5, 0", "no two sides"),
        ("  ret   %7", "  call  head in: %7 dst: %void", "does not end by returning"),
        ("  call  stem", "  jump  stem", "no C for 'jump"),
    ],
)
def test_what_there_is_no_c_for_is_refused(old: str, new: str, told: str) -> None:
    assert old in BRANCH
    with pytest.raises(BoundError, match=told):
        functions(BRANCH.replace(old, new, 1))
