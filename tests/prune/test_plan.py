from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.errors import BudgetError
from edgevit.models.macs import total_macs
from edgevit.prune.plan import Choice, cheapest, offered_levels, plan_prune
from edgevit.prune.score import BranchScore, measured_levels
from edgevit.spec import PoolKind, ProgramSpec
from tests.tiny import tiny_spec

FRACTIONS = st.floats(0.01, 1.0)  # of what can be removed


def _removable(spec: ProgramSpec) -> float:
    """The largest fraction of the MACs that pruning can remove."""
    nothing = replace(spec, branches=tuple(replace(b, kept=()) for b in spec.branches))
    return (1 - total_macs(nothing) / total_macs(spec)) * 0.999


@st.composite
def scored_specs(draw: st.DrawFn) -> tuple[ProgramSpec, tuple[BranchScore, ...]]:
    """A small spec with convex or not, decreasing or not, losses for every level."""
    pools: list[PoolKind] = ["prefix", "mean"]
    depth, hidden = draw(st.integers(1, 3)), draw(st.sampled_from([8, 64, 128]))
    spec = tiny_spec(depth=depth, hidden=hidden, pool=draw(st.sampled_from(pools)))
    scores = []
    for branch in spec.branches:
        units = measured_levels(branch.units)
        losses = [0.0, *(draw(st.floats(0, 4)) for _ in units[1:])]
        order = draw(st.permutations(branch.kept))
        scores.append(BranchScore(name=branch.name, order=tuple(order), units=units, loss=tuple(losses)))
    return spec, tuple(scores)


@settings(max_examples=60, deadline=None)
@given(scored_specs(), FRACTIONS)
def test_a_plan_meets_its_budget_with_units_the_model_has(
    case: tuple[ProgramSpec, tuple[BranchScore, ...]], fraction: float
) -> None:
    spec, scores = case
    fraction *= _removable(spec)
    plan = plan_prune(scores, spec, fraction)
    assert plan.macs <= plan.budget_macs <= (1 - fraction) * total_macs(spec)
    pairs = zip(spec.branches, plan.branches, strict=True)
    pruned = replace(spec, branches=tuple(replace(b, kept=p.kept) for b, p in pairs))
    assert total_macs(pruned) == plan.macs
    for branch, planned, score in zip(spec.branches, plan.branches, scores, strict=True):
        assert planned.kept == tuple(sorted(set(planned.kept)))
        gone = set(branch.kept) - set(planned.kept)
        assert gone == set(score.order[: len(gone)])
        assert len(planned.kept) in offered_levels(branch)


@settings(max_examples=40, deadline=None)
@given(scored_specs(), FRACTIONS, FRACTIONS)
def test_a_larger_budget_never_costs_more(
    case: tuple[ProgramSpec, tuple[BranchScore, ...]], one: float, other: float
) -> None:
    spec, scores = case
    less, more = sorted((one * _removable(spec), other * _removable(spec)))
    assert plan_prune(scores, spec, less).loss <= plan_prune(scores, spec, more).loss + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 5)), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(0, 120),
)
def test_dynamic_programming_equals_brute_force(rows: list[list[tuple[int, float]]], budget: int) -> None:
    menu = [[Choice(units=i, macs=m, loss=v) for i, (m, v) in enumerate(row)] for row in rows]
    allowed = [c for c in itertools.product(*menu) if sum(x.macs for x in c) <= budget]
    found = cheapest(menu, budget)
    if not allowed:
        assert found is None
        return
    assert found is not None and sum(c.macs for c in found) <= budget
    assert sum(c.loss for c in found) == pytest.approx(min(sum(x.loss for x in c) for c in allowed))


def _scores(spec: ProgramSpec, per_unit: dict[str, float]) -> tuple[BranchScore, ...]:
    scores = []
    for b in spec.branches:
        units = measured_levels(b.units)
        loss = tuple((b.units - u) * per_unit.get(b.name, 1.0) for u in units)
        scores.append(BranchScore(name=b.name, order=b.kept, units=units, loss=loss))
    return tuple(scores)


def test_a_plan_equals_brute_force_over_a_whole_model() -> None:
    """Also where removing the last MHSA makes the branches around it cheaper."""
    spec = tiny_spec(depth=2, hidden=4)
    scores = _scores(spec, {"b01_mhsa": 0.4, "b01_ffn": 0.3, "b00_ffn": 0.2})
    for fraction in (0.05, 0.2, 0.35, 0.45, 0.55):
        budget, best = (1 - fraction) * total_macs(spec), float("inf")
        for units in itertools.product(*(offered_levels(b) for b in spec.branches)):
            kept = replace(
                spec, branches=tuple(replace(b, kept=b.kept[:u]) for b, u in zip(spec.branches, units, strict=True))
            )
            if total_macs(kept) <= budget:
                loss = sum(s.loss[s.units.index(u)] for s, u in zip(scores, units, strict=True))
                best = min(best, loss)
        assert plan_prune(scores, spec, fraction).loss == pytest.approx(best)


def test_nothing_to_remove_keeps_everything() -> None:
    spec = tiny_spec()
    plan = plan_prune(_scores(spec, {}), spec, 0.0)
    assert [b.kept for b in plan.branches] == [b.kept for b in spec.branches] and plan.loss == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
def test_a_fraction_that_means_nothing_is_refused(fraction: float) -> None:
    spec = tiny_spec()
    with pytest.raises(BudgetError, match="allowed is 0"):
        plan_prune(_scores(spec, {}), spec, fraction)


def test_more_than_the_branches_hold_is_refused_with_the_limit() -> None:
    spec = tiny_spec()
    with pytest.raises(BudgetError, match=r"the most that can be removed is \d+\.\d%"):
        plan_prune(_scores(spec, {}), spec, 0.99)


def test_neurons_stay_in_multiples_of_16() -> None:
    spec = tiny_spec(hidden=128)
    assert offered_levels(spec.branches[1]) == [0, 16, 32, 48, 64, 80, 96, 112, 128]
    assert offered_levels(spec.branches[0]) == [0, 1, 2]
