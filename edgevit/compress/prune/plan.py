"""Decide how many units every branch keeps: the least predicted loss under a MAC budget, found exactly.

A plan takes no more than the budget asks: of plans with the same loss the one that takes the most even part of every
branch is chosen, so that scores which say nothing cost every branch alike, and taking more never counts as better.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgevit.compress.prune.score import BranchScore
from edgevit.errors import BudgetError
from edgevit.program.macs import branch_macs, macs_by_branch, rows_in, rows_out, total_macs
from edgevit.program.spec import BranchSpec, ProgramSpec

NEURON_STEP = 16
FAR = 0.02  # of all MACs: further below a budget is not what was asked for
# One integer compares plans: losses rounded to so many bits of their sum, then unevenness. Its sums are exact.
LOSS_BITS, UNEVEN_BITS = 38, 24
LAYERS = {"mhsa": "attention head", "ffn": "FFN neuron"}


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """Units a branch keeps (increasing, as in `BranchSpec.kept`) and the predicted loss in nats per image."""

    name: str
    kept: tuple[int, ...]
    loss: float


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """One `BranchPlan` per branch, in order; `macs` is what the pruned model executes, `budget_macs` the limit."""

    branches: tuple[BranchPlan, ...]
    macs: int
    budget_macs: int

    @property
    def loss(self) -> float:
        return sum(b.loss for b in self.branches)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to treat one branch; of equal losses the least `uneven` counts (MACs x squared part that goes)."""

    units: int
    macs: int
    loss: float
    uneven: float = 0.0


def plan_prune(scores: Sequence[BranchScore], spec: ProgramSpec, left: float) -> PrunePlan:
    """Leave at most `left` of the MACs of `spec` (all-open path) at the least sum of predicted losses.

    Losses between measured levels are interpolated, and removing more of a branch never counts as costing less; FFNs
    keep multiples of 16 neurons. No level more of any branch would fit the budget. The last MHSA that is left decides
    how many token rows the branches around it compute (`macs.rows_out`), so every choice of it is tried. At least one
    head and one level of neurons stay: without either kind a network is none.

    Raises:
        BudgetError: `left` is not in (0, 1], what has to stay costs more than the budget, or a score is no number.
    """
    total = total_macs(spec)
    if not 0 < left <= 1:
        raise BudgetError(f"cannot leave {left:g} of the MACs; allowed is 1 (all of them) to more than 0")
    _check_scores(scores, spec)
    if left == 1:
        kept = tuple(BranchPlan(name=b.name, kept=b.kept, loss=0.0) for b in spec.branches)
        return PrunePlan(branches=kept, macs=total, budget_macs=total)
    budget = int(total * left)
    best = _best_choices(scores, spec, budget)
    if best is None:
        least = least_macs(spec)
        raise BudgetError(
            f"{spec.name} cannot come down to {left:.1%} of its {total / 1e6:.1f} MMACs: stem, head and the least of "
            f"attention and FFN that has to stay take {least / 1e6:.1f} M; the least that can be left is "
            f"{least / total:.1%}"
        )
    branches = tuple(
        BranchPlan(name=b.name, kept=tuple(sorted(s.order[len(s.order) - c.units :])), loss=c.loss)
        for b, s, c in zip(spec.branches, scores, best, strict=True)
    )
    return PrunePlan(branches=branches, macs=total_macs(_reduced(spec, best)), budget_macs=budget)


def _best_choices(scores: Sequence[BranchScore], spec: ProgramSpec, budget_macs: int) -> list[Choice] | None:
    """Return the cheapest choice of every branch over all that the last MHSA may be, or None."""
    best: list[Choice] | None = None
    for last in _last_mhsa_candidates(spec):
        floor, menu = _menu(scores, spec, last)
        found = _with_both_kinds(spec, menu, budget_macs - floor)
        if found is not None and (best is None or _worth(found) < _worth(best)):
            best = found
    return best


def check_reached(spec: ProgramSpec, reduced: ProgramSpec, budget_macs: float, whole_macs: int) -> str:
    """Check a pruned model against its budget from below; return what to tell the user, empty where it is near.

    Args:
        spec: the model before pruning.
        reduced: the same with only the units that stay.
        budget_macs: all-open MACs that were asked for.
        whole_macs: MACs that shares are told of.

    Raises:
        BudgetError: no attention or no FFN is left, or more than 2 points of MACs are missing although more would fit.
    """
    check_kinds(spec, reduced)
    macs = total_macs(reduced)
    if budget_macs - macs <= FAR * whole_macs:
        return ""
    asked, got, step = budget_macs / whole_macs, macs / whole_macs, _next_level(spec, reduced)
    if step and macs + step <= budget_macs:
        raise BudgetError(
            f"pruning took too much of {spec.name}: {asked:.1%} of the MACs were asked for, {got:.1%} are left, and "
            f"{step / whole_macs:.1%} more would fit. What decided was not fit to decide; train on more images or "
            "for more epochs, or fine-tune the model before it is compressed"
        )
    return (
        f"pruning leaves {got:.1%} of the MACs where {asked:.1%} were asked for: units of {spec.name} come in steps, "
        f"and the least step up is {step / whole_macs:.1%}"
    )


def check_kinds(spec: ProgramSpec, reduced: ProgramSpec) -> None:
    """Raise BudgetError if all attention or all FFNs of `spec` are gone from `reduced`."""
    for kind, unit in LAYERS.items():
        before, after = (sum(b.units for b in s.branches if b.kind == kind) for s in (spec, reduced))
        if before and not after:
            raise BudgetError(
                f"no {unit} of {spec.name} is left of {before}: that is no network any more. Ask for more MACs; if "
                "there were few images or steps, train on more of them, or fine-tune the model before it is compressed"
            )


def _next_level(spec: ProgramSpec, reduced: ProgramSpec) -> int:
    """Return the MACs of the cheapest level that could be given back to one branch; 0 where nothing was taken."""
    macs, found = total_macs(reduced), []
    for index, (full, branch) in enumerate(zip(spec.branches, reduced.branches, strict=True)):
        higher = [units for units in offered_levels(full) if units > branch.units]
        if higher:
            more = replace(branch, kept=full.kept[: higher[0]], gate=full.gate)
            branches = (*reduced.branches[:index], more, *reduced.branches[index + 1 :])
            found.append(total_macs(replace(reduced, branches=branches)) - macs)
    return min(found, default=0)


def least_macs(spec: ProgramSpec) -> int:
    """Return the all-open MACs of the smallest model a plan can make: one head, and one level of neurons."""
    kinds = [[i for i, b in enumerate(spec.branches) if b.kind == kind and not b.removed] for kind in LAYERS]
    least = []
    for left in itertools.product(*(members for members in kinds if members)):
        branches = tuple(
            replace(b, kept=b.kept[: offered_levels(b)[1]]) if i in left else _emptied(b)
            for i, b in enumerate(spec.branches)
        )
        least.append(total_macs(replace(spec, branches=branches)))
    return min(least)


def _check_scores(scores: Sequence[BranchScore], spec: ProgramSpec) -> None:
    bad = [f"{s.name}: {v:g}" for s in scores for v in s.loss if not math.isfinite(v)]
    if bad:
        raise BudgetError(
            f"the importance of {spec.name}'s units is no number ({bad[0]}, {len(bad)} in all): its outputs are not "
            "finite on these images. Look at the weights and the images; float32 instead of bfloat16 may help"
        )


def planned_spec(spec: ProgramSpec, plan: PrunePlan) -> ProgramSpec:
    """Return the spec with only the planned units; a branch without any loses its gate too."""
    branches = tuple(
        replace(b, kept=p.kept) if p.kept else _emptied(b) for b, p in zip(spec.branches, plan.branches, strict=True)
    )
    return replace(spec, branches=branches)


def cheapest(menu: Sequence[Sequence[Choice]], budget_macs: int) -> list[Choice] | None:
    """Return one choice per row within the budget, of least total loss and then least uneven, or None.

    Exact (Pareto dynamic programming). States are kept as arrays (macs, worth) without dominated ones; MACs share large
    common factors, so they stay few.
    """
    if not all(menu):
        return None
    exact, most = (
        _resolution([[c.loss for c in row] for row in menu]),
        sum(max(c.uneven for c in row) for row in menu) or 1.0,
    )
    macs = worth = np.zeros(1, dtype=np.int64)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    rest = [min(c.macs for c in row) for row in menu]
    for index, row in enumerate(menu):
        new_macs = (macs[:, None] + np.array([c.macs for c in row], dtype=np.int64)).reshape(-1)
        losses = np.rint(np.array([c.loss for c in row]) / exact).astype(np.int64)
        shares = np.rint(np.array([c.uneven for c in row]) / most * 2 ** (UNEVEN_BITS - 1)).astype(np.int64)
        new_worth = (worth[:, None] + (losses << UNEVEN_BITS) + shares).reshape(-1)
        order = np.lexsort((new_worth, new_macs))
        order = order[new_macs[order] + sum(rest[index + 1 :]) <= budget_macs]
        if len(order) == 0:
            return None
        sorted_worth = new_worth[order]
        order = order[np.concatenate([[True], sorted_worth[1:] < np.minimum.accumulate(sorted_worth)[:-1]])]
        steps.append((order // len(row), order % len(row)))
        macs, worth = new_macs[order], new_worth[order]
    # Every state left is better than all with fewer MACs: the last one is the best.
    state, picked = len(macs) - 1, []
    for row, (previous, chosen) in zip(reversed(menu), reversed(steps), strict=True):
        picked.append(row[int(chosen[state])])
        state = int(previous[state])
    return picked[::-1]


def _with_both_kinds(spec: ProgramSpec, menu: list[list[Choice]], budget_macs: int) -> list[Choice] | None:
    """Return the cheapest choices that leave some attention and some FFN, of those that `spec` has."""
    found = cheapest(menu, budget_macs)
    if found is None:
        return None
    for kind in LAYERS:
        rows = [i for i, b in enumerate(spec.branches) if b.kind == kind and not b.removed]
        if rows and not any(found[i].units for i in rows):
            forced = ([[c for c in row if c.units or i != one] for i, row in enumerate(menu)] for one in rows)
            tried = [_with_both_kinds(spec, choices, budget_macs) for choices in forced]
            return min((t for t in tried if t is not None), key=_worth, default=None)
    return found


def _worth(choices: Sequence[Choice]) -> tuple[float, float]:
    """Return what compares plans of different menus; their losses are rounded alike, so that sums are exact."""
    return sum(c.loss for c in choices), sum(c.uneven for c in choices)


def _last_mhsa_candidates(spec: ProgramSpec) -> list[int | None]:
    """Return which MHSA may be the last one left; None where it makes no difference to the rows computed."""
    if spec.head.pool != "prefix":
        return [None]
    return [-1, *(i for i, b in enumerate(spec.branches) if b.kind == "mhsa" and not b.removed)]


def _menu(scores: Sequence[BranchScore], spec: ProgramSpec, last: int | None) -> tuple[int, list[list[Choice]]]:
    """Return the MACs outside the branches, and every branch's choices, if MHSA `last` stays and all later MHSA go."""
    branches = list(spec.branches)
    if last is not None:
        branches = [_emptied(b) if b.kind == "mhsa" and i > last else b for i, b in enumerate(branches)]
    shaped = replace(spec, branches=tuple(branches))
    whole, exact = macs_by_branch(spec, full_rows=True), _resolution([s.loss for s in scores])
    menu = []
    for i, (branch, score) in enumerate(zip(branches, scores, strict=True)):
        rows, rows_read = rows_out(shaped)[i], rows_in(shaped)[i]
        full = spec.branches[i]
        levels = offered_levels(full)
        losses = np.interp(levels, score.units[::-1], score.loss[::-1]).clip(0)
        losses = np.rint(losses / exact) * exact
        losses = np.maximum.accumulate(losses[::-1])[::-1]  # from all units to none
        row = []
        for units, loss in zip(levels, losses.tolist(), strict=True):
            if (i == last and units == 0) or (branch.removed and units > 0):
                continue
            reduced = replace(full, kept=full.kept[:units])
            gate = spec.dim if full.gate is not None and units else 0
            macs = branch_macs(spec, reduced, rows, rows_read) + gate
            uneven = whole[i] * (1 - units / full.units) ** 2 if full.units else 0.0
            row.append(Choice(units=units, macs=macs, loss=loss, uneven=uneven))
        menu.append(row)
    nothing = replace(spec, branches=tuple(_emptied(b) for b in branches))
    return total_macs(nothing), menu


def _resolution(losses: Sequence[Sequence[float]]) -> float:
    """Return the unit that the branches' losses are rounded to, a power of two; never 0, however small they are."""
    most = sum(max(row) for row in losses)
    return max(2.0 ** (math.frexp(most)[1] - LOSS_BITS), sys.float_info.min) if most > 0 else 1.0


def offered_levels(branch: BranchSpec) -> list[int]:
    """Return how many units a branch may keep: all, none, and whole heads or multiples of 16 neurons between."""
    step = NEURON_STEP if branch.kind == "ffn" and branch.units >= 4 * NEURON_STEP else 1
    return sorted({0, branch.units, *range(step, branch.units, step)})


def _emptied(branch: BranchSpec) -> BranchSpec:
    return replace(branch, kept=(), gate=None)


def _reduced(spec: ProgramSpec, choices: Sequence[Choice]) -> ProgramSpec:
    """Return the spec with that many units per branch (which ones does not matter to the MACs)."""
    branches = tuple(
        replace(b, kept=b.kept[: c.units]) if c.units else _emptied(b)
        for b, c in zip(spec.branches, choices, strict=True)
    )
    return replace(spec, branches=branches)
