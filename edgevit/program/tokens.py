"""Where the tokens of a Program are merged: how many are left after each point, what that costs, which plans are sound.

A plan is written `4:60,8:60`: after block 4 merge 60 pairs of tokens, after block 8 another 60. Blocks count from 1; a
block's point lies between its MHSA and its FFN, as ToMe (arXiv 2210.09461) has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from edgevit.errors import BudgetError
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.util import strict_json

LEAST_PATCHES = 2  # what has to be left to be mixed


def tokens_before(spec: ProgramSpec) -> tuple[int, ...]:
    """Return token rows of the stream before every branch, and after the last one."""
    rows = [spec.tokens]
    for branch in spec.branches:
        rows.append(rows[-1] - sum(point.count for point in spec.merges if point.after == branch.name))
    return tuple(rows)


def merge_at(spec: ProgramSpec, branch: str) -> MergeSpec | None:
    """Return the point after a branch, if there is one."""
    return next((point for point in spec.merges if point.after == branch), None)


def merge_products(spec: ProgramSpec) -> tuple[int, ...]:
    """Return MACs of every point: scores between two halves of the patches, and the product that adds pairs up."""
    found = []
    for patches, point in zip(patches_before(spec), spec.merges, strict=True):
        first, second = halves(patches)
        found.append(spec.dim * second * (first + point.count))
    return tuple(found)


def patches_before(spec: ProgramSpec) -> tuple[int, ...]:
    """Return patch tokens that come to every point."""
    left = [spec.patches]
    for point in spec.merges:
        left.append(left[-1] - point.count)
    return tuple(left[:-1])


def halves(patches: int) -> tuple[int, int]:
    """Return how many tokens are of the first set, which is merged into the second: every other one from the first."""
    return (patches + 1) // 2, patches // 2


def merge_faults(spec: ProgramSpec) -> list[str]:
    """Return what makes a plan of merges impossible, one sentence each."""
    places = {branch.name: index for index, branch in enumerate(spec.branches)}
    faults: list[str] = []
    last, left = -1, spec.patches
    for point in spec.merges:
        name, place = strict_json.shown(point.after), places.get(point.after)
        if place is None:
            return [*faults, f"tokens are merged after {name}, which is no branch"]
        if place <= last:
            return [*faults, f"points where tokens are merged must be in the order of the branches, one each: {name}"]
        if not 1 <= point.count <= left // 2 or left - point.count < LEAST_PATCHES:
            most = min(left // 2, left - LEAST_PATCHES)
            allowed = f"allowed: 1 to {most}, half of them" if most > 0 else f"{LEAST_PATCHES} have to be left"
            return [*faults, f"{point.count} tokens are merged after {name}, where there are {left}; {allowed}"]
        if not _read_later(spec, place):
            faults.append(f"tokens are merged after {name}, where nothing reads them any more: no attention follows")
        last, left = place, left - point.count
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
        raise BudgetError(f"tokens of {spec.name} cannot be merged so:\n  " + "\n  ".join(faults))
    return changed


def read_plan(text: str, spec: ProgramSpec) -> tuple[MergeSpec, ...]:
    """Return the points that `4:60,8:60` stands for in a model.

    Raises:
        BudgetError: the text is no plan, or names a block that the model does not have.
    """
    names = merge_branches(spec)
    points = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6}):(\d{1,6})\s*", part, re.ASCII)
        if found is None:
            raise BudgetError(
                f"tokens are {strict_json.shown(text)}; expected BLOCK:COUNT with commas, such as 4:60,8:60: after the "
                "attention of block 4 merge 60 pairs of tokens, after that of block 8 another 60"
            )
        block, count = int(found[1]), int(found[2])
        if not 1 <= block <= len(names):
            raise BudgetError(
                f"tokens are to be merged after block {block}; {spec.name} has blocks 1 to {len(names)}"
                if names
                else f"{spec.name} has no attention, so there is no block to merge tokens after"
            )
        points.append(MergeSpec(after=names[block - 1], count=count))
    return tuple(points)


def write_plan(spec: ProgramSpec) -> str:
    """Return the points of a spec as `4:60,8:60`; a point after another branch than an MHSA has the branch's name."""
    blocks = {name: str(number) for number, name in enumerate(merge_branches(spec), 1)}
    return ",".join(f"{blocks.get(point.after, point.after)}:{point.count}" for point in spec.merges)


def merge_branches(spec: ProgramSpec) -> tuple[str, ...]:
    """Return the branch after which the tokens of each block are merged: its MHSA."""
    return tuple(branch.name for branch in spec.branches if branch.kind == "mhsa")
