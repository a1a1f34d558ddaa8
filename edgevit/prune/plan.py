"""Decide how many units every branch keeps: the least predicted loss under a MAC budget, found exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgevit.errors import BudgetError
from edgevit.models.macs import branch_macs, rows_in, rows_out, total_macs
from edgevit.prune.score import BranchScore
from edgevit.spec import BranchSpec, ProgramSpec

NEURON_STEP = 16


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
    """One way to treat one branch."""

    units: int
    macs: int
    loss: float


def plan_prune(scores: Sequence[BranchScore], spec: ProgramSpec, fraction: float) -> PrunePlan:
    """Remove at least `fraction` of the MACs of `spec` (all-open path) at the least sum of predicted losses.

    Losses between measured levels are interpolated, FFNs keep multiples of 16 neurons. The last MHSA that is left
    decides how many token rows the branches around it compute (`macs.rows_out`), so every choice of it is tried.

    Raises:
        BudgetError: `fraction` is not in [0, 1), or stem and head alone cost more than the budget.
    """
    total = total_macs(spec)
    if not 0 <= fraction < 1:
        raise BudgetError(f"cannot remove {fraction:g} of the MACs; allowed is 0 (nothing) to less than 1")
    if fraction == 0:
        kept = tuple(BranchPlan(name=b.name, kept=b.kept, loss=0.0) for b in spec.branches)
        return PrunePlan(branches=kept, macs=total, budget_macs=total)
    budget = int(total * (1 - fraction))
    best: list[Choice] | None = None
    for last in _last_mhsa_candidates(spec):
        floor, menu = _menu(scores, spec, last)
        found = cheapest(menu, budget - floor)
        if found is not None and (best is None or _loss(found) < _loss(best)):
            best = found
    if best is None:
        least = total_macs(_reduced(spec, [Choice(units=0, macs=0, loss=0.0)] * len(spec.branches)))
        raise BudgetError(
            f"cannot remove {fraction:.1%} of {total / 1e6:.1f} MMACs of {spec.name}: stem and head, which are not "
            f"pruned, take {least / 1e6:.1f} M; the most that can be removed is {1 - least / total:.1%}"
        )
    branches = tuple(
        BranchPlan(name=b.name, kept=tuple(sorted(s.order[len(s.order) - c.units :])), loss=c.loss)
        for b, s, c in zip(spec.branches, scores, best, strict=True)
    )
    return PrunePlan(branches=branches, macs=total_macs(_reduced(spec, best)), budget_macs=budget)


def planned_spec(spec: ProgramSpec, plan: PrunePlan) -> ProgramSpec:
    """The spec with only the planned units; a branch without any loses its gate too."""
    branches = tuple(
        replace(b, kept=p.kept) if p.kept else _emptied(b) for b, p in zip(spec.branches, plan.branches, strict=True)
    )
    return replace(spec, branches=branches)


def cheapest(menu: Sequence[Sequence[Choice]], budget_macs: int) -> list[Choice] | None:
    """One choice per row with the least total loss within the budget, or None; exact (Pareto dynamic programming).

    States are kept as arrays (macs, loss) without dominated ones; MACs share large common factors, so they stay few.
    """
    macs, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    rest = [min(c.macs for c in row) for row in menu]
    for index, row in enumerate(menu):
        row_macs, row_loss = np.array([c.macs for c in row], dtype=np.int64), np.array([c.loss for c in row])
        new_macs, new_loss = (macs[:, None] + row_macs).reshape(-1), (loss[:, None] + row_loss).reshape(-1)
        order = np.lexsort((new_loss, new_macs))
        order = order[new_macs[order] + sum(rest[index + 1 :]) <= budget_macs]
        if len(order) == 0:
            return None
        sorted_loss = new_loss[order]
        better = np.concatenate([[True], sorted_loss[1:] < np.minimum.accumulate(sorted_loss)[:-1]])
        order = order[better]
        steps.append((order // len(row), order % len(row)))
        macs, loss = new_macs[order], new_loss[order]
    state, picked = int(np.argmin(loss)), []
    for row, (previous, chosen) in zip(reversed(menu), reversed(steps), strict=True):
        picked.append(row[int(chosen[state])])
        state = int(previous[state])
    return picked[::-1]


def _loss(choices: Sequence[Choice]) -> float:
    return sum(c.loss for c in choices)


def _last_mhsa_candidates(spec: ProgramSpec) -> list[int | None]:
    """Which MHSA may be the last one left; None where that makes no difference to the rows computed."""
    if spec.head.pool != "prefix":
        return [None]
    return [-1, *(i for i, b in enumerate(spec.branches) if b.kind == "mhsa" and not b.removed)]


def _menu(scores: Sequence[BranchScore], spec: ProgramSpec, last: int | None) -> tuple[int, list[list[Choice]]]:
    """MACs outside the branches, and every branch's choices, if MHSA `last` stays and all later MHSA go."""
    branches = list(spec.branches)
    if last is not None:
        branches = [_emptied(b) if b.kind == "mhsa" and i > last else b for i, b in enumerate(branches)]
    shaped = replace(spec, branches=tuple(branches))
    menu = []
    for i, (branch, score) in enumerate(zip(branches, scores, strict=True)):
        rows, rows_read = rows_out(shaped)[i], rows_in(shaped)[i]
        full = spec.branches[i]
        row = []
        for units in offered_levels(full):
            if (i == last and units == 0) or (branch.removed and units > 0):
                continue
            reduced = replace(full, kept=full.kept[:units])
            gate = spec.dim if full.gate is not None and units else 0
            macs = branch_macs(spec, reduced, rows, rows_read) + gate
            loss = float(np.interp(units, score.units[::-1], score.loss[::-1]))
            row.append(Choice(units=units, macs=macs, loss=loss))
        menu.append(row)
    nothing = replace(spec, branches=tuple(_emptied(b) for b in branches))
    return total_macs(nothing), menu


def offered_levels(branch: BranchSpec) -> list[int]:
    """Numbers of units a branch may keep: all, none, and whole heads or multiples of 16 neurons between."""
    step = NEURON_STEP if branch.kind == "ffn" and branch.units >= 4 * NEURON_STEP else 1
    return sorted({0, branch.units, *range(step, branch.units, step)})


def _emptied(branch: BranchSpec) -> BranchSpec:
    return replace(branch, kept=(), gate=None)


def _reduced(spec: ProgramSpec, choices: Sequence[Choice]) -> ProgramSpec:
    """The spec with that many units per branch (which ones does not matter to the MACs)."""
    branches = tuple(
        replace(b, kept=b.kept[: c.units]) if c.units else _emptied(b)
        for b, c in zip(spec.branches, choices, strict=True)
    )
    return replace(spec, branches=branches)
