from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgevit.compress.prune.plan import (
    BranchPlan,
    Choice,
    PrunePlan,
    cheapest,
    check_reached,
    least_macs,
    offered_levels,
    plan_prune,
    planned_spec,
)
from edgevit.compress.prune.score import BranchScore, measured_levels
from edgevit.errors import BudgetError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.spec import BranchSpec, PoolKind, ProgramSpec
from tests.tiny import tiny_spec

POOLS: tuple[PoolKind, ...] = ("prefix", "mean")
FRACTIONS = st.floats(0.01, 1.0)  # of what can be removed


def _removable(spec: ProgramSpec) -> float:
    """The largest fraction of the MACs that pruning can remove."""
    return (1 - least_macs(spec) / total_macs(spec)) * 0.999


@st.composite
def scored_specs(draw: st.DrawFn) -> tuple[ProgramSpec, tuple[BranchScore, ...]]:
    """A small spec with convex or not, decreasing or not, losses for every level."""
    pools: list[PoolKind] = ["prefix", "mean"]
    depth, hidden = draw(st.integers(1, 3)), draw(st.sampled_from([8, 64, 128]))
    spec = tiny_spec(depth=depth, hidden=hidden, pool=draw(st.sampled_from(pools)))
    scores = []
    for branch in spec.branches:
        units = measured_levels(branch.units)
        losses = [0.0, *(draw(st.sampled_from([0.0, 1.0]) | st.floats(-0.1, 4)) for _ in units[1:])]
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
    plan = plan_prune(scores, spec, 1 - fraction)
    assert plan.macs <= plan.budget_macs <= (1 - fraction) * total_macs(spec)
    pairs = zip(spec.branches, plan.branches, strict=True)
    pruned = replace(spec, branches=tuple(replace(b, kept=p.kept) for b, p in pairs))
    assert total_macs(pruned) == plan.macs
    for branch, planned, score in zip(spec.branches, plan.branches, scores, strict=True):
        assert planned.kept == tuple(sorted(set(planned.kept)))
        gone = set(branch.kept) - set(planned.kept)
        assert gone == set(score.order[: len(gone)])
        assert len(planned.kept) in offered_levels(branch)
    assert not _could_stay(spec, plan)
    for kind in ("mhsa", "ffn"):
        assert any(p.kept for b, p in pairs_of(spec, plan) if b.kind == kind)


def pairs_of(spec: ProgramSpec, plan: PrunePlan) -> list[tuple[BranchSpec, BranchPlan]]:
    return list(zip(spec.branches, plan.branches, strict=True))


def _could_stay(spec: ProgramSpec, plan: PrunePlan) -> list[str]:
    """Branches of which one level more would fit the budget: a plan within its granularity has none."""
    found = []
    for index, (branch, planned) in enumerate(pairs_of(spec, plan)):
        higher = [u for u in offered_levels(branch) if u > len(planned.kept)]
        if higher:
            kept = [p.kept for p in plan.branches]
            kept[index] = branch.kept[: higher[0]]
            more = [replace(b, kept=k) for b, k in zip(spec.branches, kept, strict=True)]
            if total_macs(replace(spec, branches=tuple(more))) <= plan.budget_macs:
                found.append(branch.name)
    return found


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("pool", ["prefix", "mean"])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_scores_that_say_nothing_take_an_even_part_of_every_branch(
    fraction: float, pool: PoolKind, value: float
) -> None:
    """All zero, or the same for every MAC: nothing is taken that the budget does not ask for, and every branch gives
    about the same part (with a class token the last MHSA may go whole, as the branch before it then costs one row)."""
    spec = tiny_spec(depth=3, dim=64, heads=8, hidden=256, pool=pool)
    scores = tuple(
        BranchScore(
            name=b.name,
            order=b.kept,
            units=tuple(range(b.units, -1, -1)),
            loss=tuple(value * m * i / b.units for i in range(b.units + 1)),
        )
        for b, m in zip(spec.branches, macs_by_branch(spec, full_rows=True), strict=True)
    )
    plan = plan_prune(scores, spec, 1 - fraction)
    assert plan.budget_macs - plan.macs >= 0
    assert not _could_stay(spec, plan)
    if value == 0 or pool == "mean":
        assert plan.budget_macs - plan.macs < 0.01 * total_macs(spec)
    gone = {b.name: 1 - len(p.kept) / b.units for b, p in pairs_of(spec, plan)}
    even = fraction * total_macs(spec) / sum(macs_by_branch(spec))
    if pool == "mean":
        assert list(gone.values()) == pytest.approx([even] * 6, abs=0.2 if value == 0 else 1)
    assert {name for name, part in gone.items() if part > even + 0.2} <= ({"b02_mhsa"} if value == 0 else set(gone))


def test_more_removed_never_counts_as_less_lost() -> None:
    """Measured losses may dip: a branch is not taken whole where a part of it is enough."""
    spec = tiny_spec(depth=2, hidden=128)
    units = measured_levels(128)
    dip = tuple(0.0 if u == 128 else 0.2 if u else 0.1 for u in units)
    scores = tuple(
        replace(s, loss=dip) if s.name == "b00_ffn" else s for s in _scores(spec, {"b01_ffn": 9.0, "b01_mhsa": 9.0})
    )
    plan = plan_prune(scores, spec, 0.97)
    assert 64 <= len(plan.branches[1].kept) < 128
    assert not _could_stay(spec, plan)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    spec = tiny_spec()
    scores = _scores(spec, {})
    broken = (replace(scores[0], loss=(0.0, bad, 1.0)), *scores[1:])
    with pytest.raises(BudgetError, match=r"is no number \(b00_mhsa: (nan|inf), 1 in all\)"):
        plan_prune(broken, spec, 0.8)


def test_some_attention_and_some_ffn_always_stay() -> None:
    """However little one kind seems to be worth, with class token and without."""
    for pool in POOLS:
        spec = tiny_spec(depth=3, hidden=64, pool=pool)
        for worthless in ("mhsa", "ffn"):
            worth = {b.name: 0.0 if b.kind == worthless else 5.0 for b in spec.branches}
            plan = plan_prune(_scores(spec, worth), spec, 0.5)
            assert any(p.kept for b, p in pairs_of(spec, plan) if b.kind == worthless)


def test_a_model_that_is_far_below_its_budget_is_told_from_one_with_few_units() -> None:
    spec = tiny_spec(depth=2, hidden=128, pool="mean")
    whole = total_macs(spec)
    plan = plan_prune(_scores(spec, {}), spec, 0.7)
    assert check_reached(spec, planned_spec(spec, plan), plan.budget_macs, whole) == ""
    with pytest.raises(BudgetError, match="pruning took too much of tiny: 90.0% of the MACs were asked for"):
        check_reached(spec, planned_spec(spec, plan), 0.9 * whole, whole)
    coarse = tiny_spec(depth=3, heads=1, hidden=8, pool="mean")
    plan = plan_prune(_scores(coarse, {b.name: 9.0 for b in coarse.branches if b.kind == "ffn"}), coarse, 0.9)
    note = check_reached(coarse, planned_spec(coarse, plan), plan.budget_macs, total_macs(coarse))
    assert "of the MACs where 90.0% were asked for: units of tiny come in steps, and the least step up" in note
    gone = replace(spec, branches=tuple(replace(b, kept=()) if b.kind == "ffn" else b for b in spec.branches))
    with pytest.raises(BudgetError, match="no FFN neuron of tiny is left of 256"):
        check_reached(spec, gone, total_macs(gone), whole)


@settings(max_examples=40, deadline=None)
@given(scored_specs(), FRACTIONS, FRACTIONS)
def test_a_larger_budget_never_costs_more(
    case: tuple[ProgramSpec, tuple[BranchScore, ...]], one: float, other: float
) -> None:
    spec, scores = case
    less, more = sorted((one * _removable(spec), other * _removable(spec)))
    assert plan_prune(scores, spec, 1 - less).loss <= plan_prune(scores, spec, 1 - more).loss + 1e-9


@settings(max_examples=100, deadline=None)
@example([[(0, 5e-324)]], 0)  # smaller than any unit to round to
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
    for fraction in (0.05, 0.2, 0.35, 0.45, 0.48):
        budget, best = (1 - fraction) * total_macs(spec), float("inf")
        for units in itertools.product(*(offered_levels(b) for b in spec.branches)):
            if not (units[0] + units[2] and units[1] + units[3]):
                continue  # no attention, or no FFN
            kept = replace(
                spec, branches=tuple(replace(b, kept=b.kept[:u]) for b, u in zip(spec.branches, units, strict=True))
            )
            if total_macs(kept) <= budget:
                loss = sum(s.loss[s.units.index(u)] for s, u in zip(scores, units, strict=True))
                best = min(best, loss)
        assert plan_prune(scores, spec, 1 - fraction).loss == pytest.approx(best)


def test_nothing_to_remove_keeps_everything() -> None:
    spec = tiny_spec()
    plan = plan_prune(_scores(spec, {}), spec, 1.0)
    assert [b.kept for b in plan.branches] == [b.kept for b in spec.branches] and plan.loss == 0


@pytest.mark.parametrize("left", [1.1, 0.0, -0.5])
def test_a_fraction_that_means_nothing_is_refused(left: float) -> None:
    spec = tiny_spec()
    with pytest.raises(BudgetError, match=f"cannot leave {left:g} of the MACs; allowed is 1"):
        plan_prune(_scores(spec, {}), spec, left)


def test_more_than_the_branches_hold_is_refused_with_the_limit() -> None:
    spec = tiny_spec()
    with pytest.raises(BudgetError, match=r"cannot come down to 1.0% of .* the least that can be left is \d+\.\d%"):
        plan_prune(_scores(spec, {}), spec, 0.01)


def test_neurons_stay_in_multiples_of_16() -> None:
    spec = tiny_spec(hidden=128)
    assert offered_levels(spec.branches[1]) == [0, 16, 32, 48, 64, 80, 96, 112, 128]
    assert offered_levels(spec.branches[0]) == [0, 1, 2]
