"""A point in front of a plan that merges nothing as calibrated, so that little effort costs little.

Late points alone cannot make a model cheap: what comes before them is computed for all tokens. Where halving the tokens
at every point would leave more than `REACH` of the MACs, a point is put in front of them. Its threshold is one that no
calibration image exceeds, so that it begins to merge when effort falls, and what the Program computes as calibrated
stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.tokens.guard import GUARD_IMAGES, guards
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import MergeSpec, ProgramSpec, shift_name
from edgevit.program.tokens import cheapest_left, half_of, merge_branches, merge_faults, merge_step, pair_counts
from edgevit.torch_form import tokens
from edgevit.torch_form.stream import step_branch
from edgevit.torch_form.vit import Vit

REACH = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """A point that merges nothing as calibrated, and its array if it has one."""

    point: MergeSpec
    shifts: dict[str, np.ndarray]


def reach(spec: ProgramSpec) -> float:
    """Return the part of a model's MACs that is left where every point merges as many tokens as it may."""
    return total_macs(spec, left=cheapest_left(spec)) / total_macs(replace(spec, merges=()))


@torch.no_grad()
def find_reserve(program: Program, work: Sequence[Tensor]) -> Reserve | None:
    """Return the point that a plan needs to reach `REACH` of its MACs; None where it needs none, or there is no place.

    Args:
        program: merges tokens; how many does not matter.
        work: batches of calibration images from `stream.batches`, as many as guards are fitted on first.
    """
    point = _place(program.spec)
    if point is None:
        return None
    bare = program.with_weights({}, replace(program.spec, merges=()))
    model, fitted = Vit(bare).eval(), -(-GUARD_IMAGES // len(work[0]))
    shift = guards(bare, list(work[:fitted])).get(point.after)
    most = max(_last_of_a_step(model, model.stem(batch), point, shift) for batch in work)
    point = replace(point, threshold=most / bare.spec.dim, shift=shift is not None)
    if merge_faults(replace(bare.spec, merges=(point,))):
        return None
    return Reserve(point=point, shifts={} if shift is None else {shift_name(point): shift.numpy()})


def opened(spec: ProgramSpec, most: float = np.inf) -> ProgramSpec:
    """Return the spec with points that merge from none to half of the tokens, by thresholds that are yet to be set.

    At most `most` times as many pairs as they did.
    """
    counts = [int(min(half_of(spec.patches), most * point.count)) for point in spec.merges]
    step = merge_step(spec.patches)
    free = zip(spec.merges, counts, strict=True)
    merges = (replace(p, count=n, least=0, threshold=0.0, step=step, whole=True) for p, n in free)
    return replace(spec, merges=tuple(merges))


def _place(spec: ProgramSpec) -> MergeSpec | None:
    """Return the latest point in front of the others with which they reach it, or else the first there can be."""
    spec, names, found = opened(spec), merge_branches(spec), None
    if reach(spec) <= REACH or spec.merges[0].after not in names:
        return None
    for name in reversed(names[: names.index(spec.merges[0].after)]):
        step = merge_step(spec.patches)
        point = MergeSpec(after=name, count=half_of(spec.patches), threshold=0.0, step=step, whole=True)
        wider = replace(spec, merges=(point, *spec.merges))
        if merge_faults(wider):
            break
        found = point
        if reach(wider) <= REACH:
            break
    return found


def _last_of_a_step(model: Vit, x: Tensor, point: MergeSpec, shift: Tensor | None) -> float:
    """Return the largest product that lets an image merge any pair: that of the last pair of the least number."""
    for branch in model.spec.branches:
        x = step_branch(model, branch, x)
        if branch.name == point.after:
            break
    best = tokens.likeness(x, None, model.spec, shift).sort(dim=1, descending=True).values
    return float(best[:, pair_counts(point, model.spec.tokens)[1] - 1].max())
