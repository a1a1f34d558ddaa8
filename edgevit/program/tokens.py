"""Where the tokens of a Program are merged: how many are left after each point, what that costs, which plans are sound.

A plan is written `4:60,8:60`: after block 4 merge 60 pairs of tokens, after block 8 another 60. `4:10-98@0.8` merges as
many pairs after block 4 as are alike in this image, those with a cosine above 0.8, but at least 10 and at most 98, and
of those only so many that whole tiles of rows are left, as runtimes compute products in tiles (`MergeSpec.whole`). Of
an image with few tokens left half are merged at most, whatever its point allows.
Blocks count from 1; a block's point lies between its MHSA and its FFN, as ToMe (arXiv 2210.09461) has it.

How many tokens are left after each point is what a run's output `tokens` says, and `left` here: patch tokens, a number
for each point. Without it the functions tell of the image with the most tokens, for which memory is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgevit.errors import BudgetError
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.util import limits, strict_json

LEAST_PATCHES = 2  # what has to be left to be mixed
MERGE_EFFORT = 0.1  # cosine that a unit of effort adds to every threshold
TILE = 16  # rows that runtimes compute together
# Pairs by which images differed at least where they were counted instead of rows (`MergeSpec.whole`).
MERGE_STEP = 8
FEW = 8  # tiles that a model has at least: those of one with few patches are smaller
# Every number of rows is a shape that runtimes prepare and memory is proven for.
MOST_COUNTS = 14  # numbers of pairs that a point may have of which half of all patches can merge
Left = Sequence[int] | np.ndarray | None
_NUMBER = r"-?(?:\d{1,3}(?:\.\d{1,20})?|\.\d{1,20})(?:e-\d{1,2})?"
_POINT = re.compile(rf"\s*(\d{{1,6}}):(?:(\d{{1,6}})|(\d{{1,6}})-(\d{{1,6}})@({_NUMBER}))\s*", re.ASCII)


def tokens_before(spec: ProgramSpec, left: Left = None) -> tuple[int, ...]:
    """Return token rows of the stream before every branch, and after the last one."""
    after = dict(zip((point.after for point in spec.merges), _left_after(spec, left), strict=True))
    rows = [spec.tokens]
    for branch in spec.branches:
        rows.append(spec.stem.prefix + after[branch.name] if branch.name in after else rows[-1])
    return tuple(rows)


def most_left(spec: ProgramSpec) -> tuple[int, ...]:
    """Return the most patch tokens there can be after every point: as few are merged as may be."""
    return _left(spec.patches, [point.fewest for point in spec.merges])


def fewest_left(spec: ProgramSpec) -> tuple[int, ...]:
    """Return how many patch tokens there are at least after every point, by what there may be before it."""
    fewest, most, found = spec.patches, spec.patches, []
    for point in spec.merges:
        # Numbers in steps: of one token more a few less may be left, but no longer two steps further on.
        there = range(fewest, min(most, fewest + 2 * point.step) + 1)
        fewest = min(left - most_pairs(spec, point, left) for left in there)
        most -= point.fewest
        found.append(fewest)
    return tuple(found)


def cheapest_left(spec: ProgramSpec) -> tuple[int, ...]:
    """Return the patch tokens after every point of an image that merges as many as it may at each."""
    left, found = spec.patches, []
    for point in spec.merges:
        left -= most_pairs(spec, point, left)
        found.append(left)
    return tuple(found)


def most_pairs(spec: ProgramSpec, point: MergeSpec, patches: int) -> int:
    """Return how many pairs a point can merge of so many patch tokens: one of `pair_counts`, the first set at most."""
    first = halves(patches)[0]
    if not point.whole and point.count <= first:
        return point.count
    limit = min(first, point.count)
    return max(limit - (limit - past_tiles(point, spec.stem.prefix + patches)) % point.step, point.fewest)


def past_tiles(point: MergeSpec, rows: int) -> int:
    """Return by how many pairs the numbers of a point lie beyond multiples of its step, of so many rows before it."""
    return rows % point.step if point.whole else 0


def _left_after(spec: ProgramSpec, left: Left) -> tuple[int, ...]:
    return most_left(spec) if left is None else tuple(map(int, left))  # products of an output's int32 could overflow


def _left(patches: int, pairs: Sequence[int]) -> tuple[int, ...]:
    return tuple(patches - sum(pairs[: index + 1]) for index in range(len(pairs)))


def pair_counts(point: MergeSpec, rows: int) -> tuple[int, ...]:
    """Return how many pairs a point can merge of so many token rows, from `fewest` to `count`.

    Of the numbers between them those that leave multiples of its step as rows; where pairs are counted (no `whole`)
    multiples of it, and `count` itself. Of as many pairs as are alike enough the largest of these is merged, otherwise
    the first. An image that has fewer pairs than one of them never merges that.
    """
    past = past_tiles(point, rows)
    least = point.fewest + point.step - (point.fewest - past) % point.step
    end = point.count + 1 if point.whole else point.count
    return tuple(sorted({point.fewest, *range(least, end, point.step), *([] if point.whole else [point.count])}))


def merge_step(patches: int) -> int:
    """Return the rows of a tile in points that follow the image, in a model of so many patches.

    `TILE` or a multiple of it, so that a point has at most `MOST_COUNTS` numbers; a part of it where patches are few.
    """
    if patches < FEW * TILE:
        return max(1 << max(patches // FEW, 1).bit_length() - 1, 2)
    return TILE * max(-(-half_of(patches) // (TILE * (MOST_COUNTS - 2))), 1)


def fewest_before(spec: ProgramSpec, point: MergeSpec) -> int:
    """Return the fewest patch tokens there can be that come to a point."""
    before = spec.merges[: spec.merges.index(point)]
    return fewest_left(replace(spec, merges=before))[-1] if before else spec.patches


def merge_at(spec: ProgramSpec, branch: str) -> MergeSpec | None:
    """Return the point after a branch, if there is one."""
    return next((point for point in spec.merges if point.after == branch), None)


def merge_products(spec: ProgramSpec, left: Left = None) -> tuple[int, ...]:
    """Return MACs of every point: scores between two halves of the patches, and the product that adds pairs up."""
    found = []
    for patches, rest in zip(patches_before(spec, left), _left_after(spec, left), strict=True):
        first, second = halves(patches)
        found.append(spec.dim * second * (first + patches - rest))
    return tuple(found)


def patches_before(spec: ProgramSpec, left: Left = None) -> tuple[int, ...]:
    """Return patch tokens that come to every point."""
    return (spec.patches, *_left_after(spec, left))[: len(spec.merges)]


def halves(patches: int) -> tuple[int, int]:
    """Return how many tokens are of the first set, which is merged into the second: every other one from the first."""
    return (patches + 1) // 2, patches // 2


def half_of(patches: int) -> int:
    """Return the most pairs that a point may be allowed where there are so many patch tokens; below 1: none."""
    return min(patches // 2, patches - LEAST_PATCHES)


def merge_faults(spec: ProgramSpec) -> list[str]:
    """Return what makes a plan of merges impossible, one sentence each."""
    places = {branch.name: index for index, branch in enumerate(spec.branches)}
    faults: list[str] = []
    last, fewest, most = -1, spec.patches, spec.patches
    for index, point in enumerate(spec.merges):
        name, place = strict_json.shown(point.after), places.get(point.after)
        if place is None:
            return [*faults, f"tokens are merged after {name}, which is no branch"]
        if place <= last:
            return [*faults, f"points where tokens are merged must be in the order of the branches, one each: {name}"]
        smallest, largest = 1 if point.whole else MERGE_STEP, max(MERGE_STEP, spec.patches)
        if not smallest <= point.step <= largest:
            said = f"pairs after {name} come in steps of {point.step:.6g}"
            return [*faults, f"{said}; allowed: {smallest} to {largest}"]
        if fault := _count_fault(spec, point, name, fewest, most):
            return [*faults, fault]
        faults += _threshold_faults(point, name)
        if not _read_later(spec, place):
            faults.append(f"tokens are merged after {name}, where nothing reads them any more: no attention follows")
        last, fewest, most = place, fewest_left(replace(spec, merges=spec.merges[: index + 1]))[-1], most - point.fewest
    return faults


def _count_fault(spec: ProgramSpec, point: MergeSpec, name: str, fewest: int, most: int) -> str:
    """Return what is wrong with the numbers of a point that `fewest` to `most` patch tokens come to, "" for nothing.

    What every image merges has to be there for the one of which most was merged before; what some do, for some.
    """
    needed = [(point.fewest, fewest, "at least")] if point.fewest else []
    needed += [] if point.threshold is None else [(point.count, most, "at most")]
    for count, there, bound in needed or [(0, fewest, "at least")]:
        half = half_of(there)
        if not 1 <= count <= half:
            allowed = f"allowed: 1 to {half}, half of them" if half > 0 else f"{LEAST_PATCHES} have to be left"
            where = f"there are {there}" + (f" {bound}" if fewest != most or spec.adaptive else "")
            return f"{count} tokens are merged after {name}, where {where}; {allowed}"
    if fewest - most_pairs(spec, point, fewest) < LEAST_PATCHES:
        return f"an image may have {fewest} tokens where they are merged after {name}; {LEAST_PATCHES} have to be left"
    rows = spec.stem.prefix + most
    if point.threshold is not None and point.least < point.count and len(pair_counts(point, rows)) == 1:
        enough = pair_counts(replace(point, count=point.least + point.step), rows)[-1]
        return (
            f"{point.count} tokens at most are merged after {name}, which leaves no multiple of {point.step} of {rows} "
            f"rows; allowed: {enough} or more"
        )
    return ""


def _threshold_faults(point: MergeSpec, name: str) -> list[str]:
    if point.threshold is None:
        return [] if point.least == 0 else [f"least is {point.least} after {name}, which needs a threshold; allowed: 0"]
    faults = []
    if not 0 <= point.least < point.count:
        faults.append(f"at least {point.least} tokens are merged after {name}; allowed: 0 to {point.count - 1}")
    if point.threshold not in limits.LIKENESS:
        faults.append(f"the threshold after {name} is {point.threshold:g}, allowed for {limits.LIKENESS.said}")
    return faults


def _read_later(spec: ProgramSpec, place: int) -> bool:
    """Return whether fewer patch tokens after branch number `place` save anything: they are mixed or averaged later."""
    after = [branch for branch in spec.branches[place + 1 :] if not branch.removed]
    if spec.head.pool == "prefix":
        return any(b.kind == "mhsa" or (b.gate is not None and b.gate.pool == "mean") for b in after)
    return bool(after)


def with_merges(spec: ProgramSpec, merges: Sequence[MergeSpec]) -> ProgramSpec:
    """Return the spec with these points instead of those it has.

    Raises:
        BudgetError: the plan is not possible; the message says why.
    """
    changed = replace(spec, merges=tuple(merges))
    if faults := merge_faults(changed):
        first = "".join(f" (block 1 is {name})" for name in merge_branches(changed)[:1])
        raise BudgetError(f"tokens of {spec.name} cannot be merged so{first}:\n  " + "\n  ".join(faults))
    return changed


def read_plan(text: str, spec: ProgramSpec) -> tuple[MergeSpec, ...]:
    """Return the points that `4:60,8:60` or `4:0-98@0.8` stands for in a model.

    Raises:
        BudgetError: the text is no plan, or names a block that the model does not have.
    """
    names = merge_branches(spec)
    points = []
    for part in text.split(","):
        found = _POINT.fullmatch(part)
        if found is None:
            raise BudgetError(
                f"tokens are {strict_json.shown(text)}; expected BLOCK:COUNT with commas, such as 4:60,8:60: after the "
                "attention of block 4 merge 60 pairs of tokens, after that of block 8 another 60; or "
                "BLOCK:LEAST-MOST@COSINE, such as 4:0-98@0.8: after block 4 merge the pairs with a cosine above 0.8, "
                "98 of them at most"
            )
        block = int(found[1])
        if not 1 <= block <= len(names):
            raise BudgetError(
                f"tokens are to be merged after block {block}; {spec.name} has blocks 1 to {len(names)}"
                if names
                else f"{spec.name} has no attention, so there is no block to merge tokens after"
            )
        if found[3] is None:
            points.append(MergeSpec(after=names[block - 1], count=int(found[2])))
        else:
            least, most, threshold = int(found[3]), int(found[4]), float(found[5])
            points.append(
                MergeSpec(
                    after=names[block - 1],
                    count=most,
                    least=least,
                    threshold=threshold,
                    step=merge_step(spec.patches),
                    whole=True,
                )
            )
    return tuple(points)


def write_plan(spec: ProgramSpec) -> str:
    """Return the points of a spec as `4:60,8:60`; a point after another branch than an MHSA has the branch's name."""
    blocks = {name: str(number) for number, name in enumerate(merge_branches(spec), 1)}
    return ",".join(f"{blocks.get(point.after, point.after)}:{_write_count(point)}" for point in spec.merges)


def _write_count(point: MergeSpec) -> str:
    return f"{point.count}" if point.threshold is None else f"{point.least}-{point.count}@{point.threshold!r}"


def merge_branches(spec: ProgramSpec) -> tuple[str, ...]:
    """Return the branch after which the tokens of each block are merged: its MHSA."""
    return tuple(branch.name for branch in spec.branches if branch.kind == "mhsa")
