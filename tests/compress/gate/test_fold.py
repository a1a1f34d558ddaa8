from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.compress.gate.fold import FEWEST_IMAGES, fold_constant
from edgevit.compress.gate.judge import answers
from edgevit.program.program import Program
from tests.tiny import tiny_images, tiny_program

ALWAYS, NEVER = -100.0, 100.0


def with_thresholds(program: Program, **thresholds: float) -> Program:
    branches = tuple(
        b
        if b.name not in thresholds or b.gate is None
        else replace(b, gate=replace(b.gate, threshold=thresholds[b.name]))
        for b in program.spec.branches
    )
    return replace(program, spec=replace(program.spec, branches=branches))


def test_constant_gates_go_and_nothing_changes() -> None:
    program = with_thresholds(tiny_program(gated=True, skip=True, depth=3), b00_ffn=ALWAYS, b02_mhsa=NEVER)
    images = tiny_images(program.spec, FEWEST_IMAGES)
    folded = fold_constant(program, images)
    by_name = {b.name: b for b in folded.spec.branches}
    assert by_name["b00_ffn"].gate is None and by_name["b00_ffn"].units == 64
    assert by_name["b02_mhsa"].removed and by_name["b02_mhsa"].skip
    assert folded.spec.gated
    before, after = answers(program, images), answers(folded, images)
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-5)
    assert sum(a.size for a in folded.weights.values()) < sum(a.size for a in program.weights.values())
    assert after.macs < before.macs


def test_gates_that_vary_and_ungated_programs_stay() -> None:
    program = tiny_program(gated=True, skip=True)
    images = tiny_images(program.spec, FEWEST_IMAGES)
    folded = fold_constant(program, images)
    rates = answers(program, images).ran.mean(axis=0)
    for branch, rate in zip(folded.spec.branches, rates, strict=True):
        assert (branch.gate is None) == (rate in (0, 1))
    assert fold_constant(program, images[1:]) is program
    plain = tiny_program()
    assert fold_constant(plain, images) is plain
