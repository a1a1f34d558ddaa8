"""Budgets as parts of the MACs that are left, and which of them cannot be reached."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.compress.budgets import Budgets, check_budgets, check_label_free, split_budget
from edgevit.compress.prune.plan import least_macs
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from tests.tiny import tiny_program

SHAPE = {"depth": 3, "dim": 32, "heads": 4, "hidden": 64}


@given(st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_the_share_divides_the_saving(macs: float, share: float) -> None:
    found = split_budget(macs, None, share)
    assert found.expected == pytest.approx(macs)
    assert macs <= found.static <= 1.0
    assert split_budget(macs, None, 1.0).static == pytest.approx(macs)
    assert not split_budget(macs, None, 0.0).prunes


def test_a_static_budget_below_the_expected_one_is_all() -> None:
    found = split_budget(0.7, 0.5, 0.6)
    assert (found.expected, found.static, found.gates, found.prunes) == (0.5, 0.5, False, True)


def test_what_merging_and_pruning_cannot_reach_is_refused_with_the_least() -> None:
    spec = tiny_program(**SHAPE, image=(64, 64)).spec
    with pytest.raises(BudgetError, match="merging tokens leaves .* at least, and pruning before it") as caught:
        check_label_free(spec, Budgets(merged=0.001))
    least = float(str(caught.value).split()[-3].rstrip("%")) / 100
    check_label_free(spec, Budgets(merged=least))
    with pytest.raises(BudgetError):
        check_label_free(spec, Budgets(merged=0.99 * least))


def test_what_merges_tokens_is_not_compressed_again() -> None:
    spec = tiny_program(**SHAPE, tokens="1:4").spec
    check_label_free(spec, Budgets())
    for budgets in (Budgets(merged=0.9), Budgets(static=0.9, expected=0.9), Budgets(expected=0.9)):
        with pytest.raises(BudgetError, match=r"merges tokens already \(1:4\).*made of, or with --tokens another plan"):
            check_label_free(spec, budgets)


def test_what_cannot_be_reached_is_refused_with_the_least() -> None:
    spec = tiny_program(**SHAPE).spec
    closed = [replace(b, kept=()) for b in spec.branches]
    floor = total_macs(replace(spec, branches=tuple(closed))) / total_macs(spec)
    check_budgets(spec, Budgets(expected=floor + 0.05, static=1.0))
    for budgets in (Budgets(expected=floor / 2, static=1.0), Budgets(expected=floor / 2, static=floor / 2)):
        with pytest.raises(BudgetError, match=f"ask for more than {floor:.1f}"):
            check_budgets(spec, budgets)
    with pytest.raises(BudgetError, match="at most 1"):
        check_budgets(spec, Budgets(expected=0.5, static=1.5))


def test_a_budget_below_one_head_and_some_neurons_is_refused_at_once() -> None:
    spec = tiny_program(**SHAPE).spec
    least = least_macs(spec) / total_macs(spec)
    with pytest.raises(BudgetError, match="the least of attention and FFN that has to stay"):
        check_budgets(spec, Budgets(expected=least, static=least))


@pytest.mark.parametrize(
    ("budgets", "prunes", "gates"),
    [
        (Budgets(), False, False),
        (Budgets(expected=0.7), False, True),
        (Budgets(expected=0.7, static=0.7), True, False),
        (Budgets(expected=0.5, static=0.7), True, True),
    ],
)
def test_a_budget_says_what_has_to_be_done(budgets: Budgets, prunes: bool, gates: bool) -> None:
    assert (budgets.prunes, budgets.gates, budgets.compresses) == (prunes, gates, prunes or gates)


def test_tokens_come_first_and_pruning_and_gates_share_the_rest() -> None:
    budgets = split_budget(0.5, None, 0.5, merged=0.72)
    assert budgets.merged == 0.72 and budgets.expected == pytest.approx(0.5)
    assert budgets.static == pytest.approx(0.72 * (0.5 / 0.72) ** 0.5)
    assert budgets.prunes and budgets.gates
    enough = split_budget(0.8, None, 0.85, merged=0.7)
    assert (enough.expected, enough.static) == (0.7, 0.7)
    assert enough.compresses and not enough.prunes and not enough.gates
    assert split_budget(0.5, 0.9, 0.85, merged=0.7).static == 0.7
