"""Set the thresholds of gates so that the expected MACs on given images meet a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import BudgetError
from edgevit.program.macs import gate_macs, head_macs, macs_by_branch, merge_macs, stem_macs, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit

PASSES = 30
FINEST_SHIFT = 1e-5  # of the largest margin
TOLERANCE = 1e-3  # of the all-open MACs
FAR = 0.02  # of all MACs: further from a budget is not what was asked for


def fixed_macs(spec: ProgramSpec) -> int:
    """Return the MACs of a path on which every gate is closed."""
    ungated = sum(m for m, b in zip(macs_by_branch(spec), spec.branches, strict=True) if b.gate is None)
    return stem_macs(spec) + head_macs(spec) + gate_macs(spec) + merge_macs(spec) + ungated


@torch.no_grad()
def open_rates(program: Program, images: np.ndarray, effort: float = 0.0) -> np.ndarray:
    """Return whether each branch ran for each image: bool `[n, branches]`; ungated ones always run, removed ones never.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    model = Vit(program).eval().requires_grad_(False)
    margins = _margins(model, batches(program.spec, images), effort)
    ungated = np.array([b.gate is None for b in program.spec.branches])
    kept = np.array([not b.removed for b in program.spec.branches])
    return np.where(ungated, kept, margins > 0)


def _margins(model: Vit, work: list[Tensor], effort: float) -> np.ndarray:
    """Return how far every gate is above its threshold, `[n, branches]`, each branch after the decisions before it."""
    spec, rows = model.spec, []
    for batch in work:
        margins = np.zeros((len(batch), len(spec.branches)))

        def decide(index: int, x: Tensor, margins: np.ndarray = margins) -> Tensor:
            branch = spec.branches[index]
            assert branch.gate is not None
            margin = model.gate_logit(branch, x) + effort - branch.gate.threshold
            margins[:, index] = margin.numpy()
            return (margin > 0).to(x.dtype)

        model.blocks(model.stem(batch), decide, effort=effort)
        rows.append(margins)
    return np.concatenate(rows)


def expected_macs(spec: ProgramSpec, ran: np.ndarray) -> float:
    """Return mean MACs per image, given which branches ran (`open_rates`)."""
    branches = np.array(macs_by_branch(spec))
    gated = np.array([b.gate is not None for b in spec.branches])
    return fixed_macs(spec) + float((ran[:, gated] * branches[gated]).sum(axis=1).mean())


@torch.no_grad()
def calibrate_thresholds(program: Program, images: np.ndarray, budget: float) -> Program:
    """Return shift all thresholds by one amount so that `images` use `budget` of the all-open MACs on average.

    Closing one gate changes what later gates see, so the shift that would be right for the logits just seen is tried,
    inside a bracket that shrinks (its middle where the proposal leaves it). The shift nearest to the budget is taken.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    gated = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    macs = np.array(macs_by_branch(spec), dtype=float)[gated]
    work, target = batches(spec, images), budget * total_macs(spec) - fixed_macs(spec)
    low, high, shift, largest = -np.inf, np.inf, 0.0, 0.0
    best, nearest = 0.0, np.inf
    for _ in range(PASSES):
        margins = _margins(model, work, shift)[:, gated]
        largest = largest or 2 * float(np.abs(margins).max()) + 1
        spent = float(((margins > 0) * macs).sum(axis=1).mean())
        if abs(spent - target) < nearest:
            best, nearest = shift, abs(spent - target)
        if nearest <= TOLERANCE * total_macs(spec) or high - low <= FINEST_SHIFT * largest:
            break
        low, high = (max(low, -largest), shift) if spent > target else (shift, min(high, largest))
        shift += shift_for(margins, macs, target)
        if not low < shift < high:
            shift = (low + high) / 2
    branches = tuple(
        b if b.gate is None else replace(b, gate=replace(b.gate, threshold=b.gate.threshold - best))
        for b in spec.branches
    )
    return replace(program, spec=replace(spec, branches=branches))


def check_spent(program: Program, images: np.ndarray, budget_macs: float, whole_macs: int) -> str:
    """Check mean MACs against a budget from both sides; return what to tell the user, empty where they are near.

    Gates that decide alike for all images come in steps of a whole branch, and thresholds take the nearer step.

    Args:
        program: with thresholds set on `images`, uint8 `[n, height, width, 3]`.
        images: see `program`.
        budget_macs: mean MACs of an image that were asked for.
        whole_macs: MACs that shares are told of.

    Raises:
        BudgetError: more than 2 points of MACs and half a branch away, or no image runs any attention or any FFN.
    """
    spec, ran = program.spec, open_rates(program, images)
    off = expected_macs(spec, ran) - budget_macs
    step = max(m for m, b in zip(macs_by_branch(spec), spec.branches, strict=True) if b.gate is not None)
    found = (
        f"gates of {spec.name} cannot be set nearer to {budget_macs / whole_macs:.1%} of the MACs than "
        f"{(budget_macs + off) / whole_macs:.1%} on {len(images)} images"
    )
    if abs(off) > max(FAR * whole_macs, step / 2):
        raise BudgetError(f"{found}: they decide alike for too many of them. Give more images, and of more kinds")
    for kind in ("mhsa", "ffn"):
        of = [i for i, b in enumerate(spec.branches) if b.kind == kind]
        if any(not spec.branches[i].removed for i in of) and not ran[:, of].any():
            raise BudgetError(
                f"gates of {spec.name} let none of {len(images)} images run any {kind.upper()}: that is no network any "
                "more; ask for more MACs"
            )
    near = abs(off) <= FAR * whole_macs
    return "" if near else f"{found}: one branch more or less is up to {step / whole_macs:.1%}"


def shift_for(margins: np.ndarray, macs: np.ndarray, target: float) -> float:
    """Return what to add to `margins [n, gates]`, taken as given, for mean MACs of open gates of about `target`.

    `macs [gates]` and `target` are in one unit, whatever it is.
    """
    order = np.argsort(-margins, axis=None)
    spent = np.cumsum(np.broadcast_to(macs, margins.shape).reshape(-1)[order]) / len(margins)
    count = int(np.searchsorted(spent, target))
    sorted_margins = margins.reshape(-1)[order]
    if count == 0 or count >= len(order):
        return -float(sorted_margins[0]) - 1 if count == 0 else -float(sorted_margins[-1]) + 1
    return -float(sorted_margins[count - 1] + sorted_margins[count]) / 2
