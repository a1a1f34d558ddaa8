"""The exact check of counted products: it passes whatever branches cost, and fails when one closed branch runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.errors import SkipError
from edgevit.verify.instructions import PRODUCTS, CountedRun, check_skip_instructions

SHAPES = ("mhsa", "ffn", "mhsa", "ffn", None)
PATTERNS = [(*gates, 1) for gates in product((0, 1), repeat=4)]


def counted(gates: Sequence[int], mhsa: int, ffn: int, base: int = 1000, extra: int = 0) -> CountedRun:
    """A run of a model whose branches cost so many dot products, with half as many float multiply-adds in mhsa."""
    attention = gates[0] + gates[2]
    dots = base + mhsa * attention + ffn * (gates[1] + gates[3]) + extra
    classes = {"multiply_add": base + mhsa // 2 * attention, "dot": dots, "load": 7 * dots, "other": 99}
    return CountedRun(gates=tuple(gates), classes=dict.fromkeys(PRODUCTS, 0) | classes)


@given(
    st.integers(2, 10**9),
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.lists(st.sampled_from(PATTERNS), min_size=2, max_size=16),
)
def test_what_only_open_branches_cost_passes(mhsa: int, ffn: int, base: int, patterns: list[tuple[int, ...]]) -> None:
    runs = [counted(gates, mhsa, ffn, base) for gates in (*patterns, *patterns)]
    found = check_skip_instructions(runs, SHAPES)
    assert found.runs == 2 * len(patterns)
    assert found.patterns == len(set(patterns))


def test_what_cannot_be_contradicted_is_said() -> None:
    found = check_skip_instructions([counted(PATTERNS[0], 10, 20), counted(PATTERNS[-1], 10, 20)], SHAPES)
    assert found.spare == 0 and "(too few patterns to check" in found.summary
    assert check_skip_instructions([counted(gates, 10, 20) for gates in PATTERNS], SHAPES).spare == 16 - 3


@given(st.sampled_from(PATTERNS[1:-1]), st.sampled_from((-1, 1, 10, -10)))
def test_one_closed_branch_that_runs_is_found(pattern: tuple[int, ...], extra: int) -> None:
    runs = [counted(gates, 10, 20, extra=extra if gates == pattern else 0) for gates in PATTERNS]
    with pytest.raises(SkipError, match="a closed branch runs, or an open one does not"):
        check_skip_instructions(runs, SHAPES)


def test_a_model_that_computes_everything_always_is_found() -> None:
    always = [CountedRun(gates=gates, classes=counted(PATTERNS[-1], 10, 20).classes) for gates in PATTERNS]
    with pytest.raises(SkipError, match="it runs always"):
        check_skip_instructions(always, SHAPES)
    with pytest.raises(SkipError, match="a closed branch is not skipped"):
        check_skip_instructions([always[0], always[-1]], SHAPES)


def test_equal_gates_with_unequal_counts_are_found() -> None:
    runs = [counted(PATTERNS[3], 10, 20), counted(PATTERNS[3], 10, 20, extra=1)]
    with pytest.raises(SkipError, match="2 of 4 gates open.*depends on more than the gates"):
        check_skip_instructions(runs, SHAPES)


def test_a_model_without_gates_has_one_pattern() -> None:
    found = check_skip_instructions([counted((1, 1, 1, 1, 1), 10, 20)] * 3, [None] * 5)
    assert (found.patterns, found.unknowns, found.spare) == (1, 1, 0)
    assert found.summary == "nothing is gated; 3 runs executed equal products"


def test_work_that_does_not_depend_on_the_gates_is_found() -> None:
    runs = [counted(gates, 1000, 2000, base=200) for gates in PATTERNS]
    check_skip_instructions(runs, SHAPES, base_share=0.1)
    more = [CountedRun(gates=run.gates, classes={k: v + 6000 for k, v in run.classes.items()}) for run in runs]
    with pytest.raises(SkipError, match=r"with all gates closed .* \(MACs say 10.0%, limit 25.0%\)"):
        check_skip_instructions(more, SHAPES, base_share=0.1)


def merged(tokens: tuple[int, ...], gates: tuple[int, ...] = (1, 1, 1, 1, 1), extra: int = 0) -> CountedRun:
    """A run whose branches after the two points cost 10 and 20 products per token."""
    run = counted(gates, 10 * tokens[0], 20 * tokens[1], extra=extra)
    return CountedRun(gates=gates, classes=run.classes, tokens=tokens)


LEFT = [(a, b) for a in (64, 96, 128) for b in (16, 48)]


def test_what_tokens_cost_at_every_point_passes() -> None:
    found = check_skip_instructions([merged(tokens) for tokens in (*LEFT, *LEFT)], [None] * 5)
    assert (found.runs, found.patterns, found.spare) == (12, 6, 2)
    gated = [merged(tokens, gates) for tokens in LEFT for gates in PATTERNS]
    found = check_skip_instructions(gated, SHAPES)
    assert found.patterns == 96 and found.spare > 78 and "patterns of gates and 6 numbers of tokens" in found.summary


@pytest.mark.parametrize("extra", [-1, 1])
def test_counts_that_the_tokens_do_not_explain_are_found(extra: int) -> None:
    runs = [merged(tokens, extra=extra if tokens == LEFT[2] else 0) for tokens in LEFT]
    with pytest.raises(SkipError, match="it depends on more than the gates and the tokens"):
        check_skip_instructions(runs, [None] * 5)
    with pytest.raises(SkipError, match="two runs took the same path"):
        check_skip_instructions([*(merged(tokens) for tokens in LEFT), merged(LEFT[2], extra=extra)], [None] * 5)


def test_fewer_tokens_that_save_nothing_are_found() -> None:
    whole = merged(LEFT[-1]).classes
    runs = [CountedRun(gates=(1,) * 5, classes=whole, tokens=tokens) for tokens in LEFT]
    with pytest.raises(SkipError, match="with 64, 16 tokens left .* fewer tokens save nothing"):
        check_skip_instructions(runs, [None] * 5)
    # Less than a tile may be as much.
    check_skip_instructions(
        [CountedRun(gates=(1,) * 5, classes=whole, tokens=(64 + i, 16)) for i in range(9)], [None] * 5
    )
