"""Where gates go, and what they read."""

from __future__ import annotations

from edgevit.compress.gate.attach import attach_gates
from tests.tiny import tiny_program


def test_a_removed_branch_gets_no_gate() -> None:
    program = tiny_program(depth=2, removed=("b00_mhsa",), skip=True)
    gated = attach_gates(program)
    assert gated.spec.branches[0] == program.spec.branches[0]
    assert all(b.gate is not None and b.skip for b in gated.spec.branches[1:])


def test_the_gate_reads_the_mean_token_where_there_is_no_class_token() -> None:
    gated = attach_gates(tiny_program(prefix=0))
    assert {b.gate.pool for b in gated.spec.branches if b.gate} == {"mean"}
    assert gated.weights["b00_mhsa.skip"].shape == (1, 32)
