"""Plans of merges that meet a budget of MACs: where the points lie, and how many pairs are merged at each.

Every point of a plan merges the same number of pairs, the smallest with which the budget is met; what rounding leaves
is given back at the first point, where tokens cost most. Then numbers are moved so that whole tiles of rows are left:
runtimes compute products in tiles of 16 rows, and a row too many costs a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.program.tokens import TILE, merge_branches, merge_faults, most_left

MOST_POINTS = 4  # every point costs time beside its MACs
# Of the dense model's MACs: below it merging alone loses more accuracy than pruning a part away first.
LEAST_MERGED = 0.5
GIVEN_AWAY = 0.01  # of the dense model's MACs, at most, for whole tiles


def plan_at(spec: ProgramSpec, blocks: Sequence[int], budget_macs: int) -> ProgramSpec | None:
    """Return the spec with merges after these blocks (from 0) within the budget, or None if they cannot reach it."""
    most = _most(spec, blocks)
    if most is None or total_macs(merged(spec, blocks, [most] * len(blocks))) > budget_macs:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        fits = total_macs(merged(spec, blocks, [middle] * len(blocks))) <= budget_macs
        low, high = (low, middle) if fits else (middle, high)
    counts = [high] * len(blocks)
    while counts[0] > 1 and total_macs(merged(spec, blocks, [counts[0] - 1, *counts[1:]])) <= budget_macs:
        counts[0] -= 1
    return _in_whole_tiles(spec, blocks, counts, budget_macs) or merged(spec, blocks, counts)


def _in_whole_tiles(
    spec: ProgramSpec, blocks: Sequence[int], counts: Sequence[int], budget_macs: int
) -> ProgramSpec | None:
    """Return the plan nearest the budget that leaves whole tiles of rows at every point, by a tile more or fewer each.

    None: there is none, or it merges so much more that accuracy would pay for it.
    """
    left = most_left(merged(spec, blocks, counts))
    rows = [(spec.stem.prefix + n) // TILE * TILE for n in left]
    found, most = None, budget_macs - GIVEN_AWAY * total_macs(replace(spec, merges=()))
    for chosen in product(*((r, r + TILE) for r in rows)):
        before = (spec.tokens, *chosen)
        plan = merged(spec, blocks, [a - b for a, b in zip(before, chosen, strict=False)])
        macs = total_macs(plan) if not merge_faults(plan) else 0
        if most <= macs <= budget_macs:
            found, most = plan, macs
    return found


def merged(spec: ProgramSpec, blocks: Sequence[int], counts: Sequence[int]) -> ProgramSpec:
    """Return the spec that merges `counts` pairs after the attention of `blocks`, which count from 0."""
    names = merge_branches(spec)
    merges = tuple(MergeSpec(after=names[b], count=c) for b, c in zip(blocks, counts, strict=True))
    return replace(spec, merges=merges)


def _most(spec: ProgramSpec, blocks: Sequence[int]) -> int | None:
    """Return the largest number of pairs that every one of these points can merge; None: a point is impossible."""
    most = spec.patches // 2
    while most and merge_faults(merged(spec, blocks, [most] * len(blocks))):
        most -= 1
    return most or None


def spread(blocks: int, points: int) -> tuple[int, ...]:
    """Return `points` of a model's blocks, from 0, with equal distances between them and from both ends."""
    return tuple(blocks * (i + 1) // (points + 1) - 1 for i in range(points))


def starts(spec: ProgramSpec, budget_macs: int) -> tuple[ProgramSpec, ...]:
    """Return a plan of 1 to 4 spread points each that meets the budget, shifted to earlier blocks where it has to."""
    found = []
    for points in range(1, MOST_POINTS + 1):
        blocks = spread(len(merge_branches(spec)), points)
        while blocks[0] >= 0 and len(set(blocks)) == points:
            plan = plan_at(spec, blocks, budget_macs)
            if plan is not None:
                found.append(plan)
                break
            blocks = tuple(b - 1 for b in blocks)
    return tuple(found)


def least_share(spec: ProgramSpec) -> float:
    """Return the share of the MACs that merging alone can leave: at least `LEAST_MERGED`, 1 if none can be."""
    low, high = LEAST_MERGED, 1.0
    if starts(spec, int(low * total_macs(spec))):
        return low
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if starts(spec, int(middle * total_macs(spec))) else (middle, high)
    return high


def predicted(spec: ProgramSpec, budget_macs: int) -> ProgramSpec:
    """Return a plan that meets the budget, without looking at images: three spread points, or as near as can be.

    Raises:
        BudgetError: no plan of a few points does; says what they can reach.
    """
    plans = starts(spec, budget_macs)
    if not plans:
        raise unreachable(spec, budget_macs)
    return min(plans, key=lambda plan: abs(len(plan.merges) - 3))


def unreachable(spec: ProgramSpec, budget_macs: int) -> BudgetError:
    """Return the error for a budget that no plan of a few points reaches."""
    return BudgetError(
        f"merging tokens of {spec.name} leaves {least_share(spec):.0%} of its MACs at least, and "
        f"{budget_macs / total_macs(spec):.0%} were asked for; ask for more, or prune too (--static)"
    )
