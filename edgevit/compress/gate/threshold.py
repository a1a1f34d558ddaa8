"""Set the thresholds of gates and merges so that the expected MACs on given images meet a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import BudgetError
from edgevit.program.macs import gate_macs, head_macs, macs_by_branch, merge_macs, run_macs, stem_macs, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import MERGE_EFFORT, Left
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.limits import LIKENESS

PASSES = 30
PROPOSALS = 6  # tries of a shift that would be right for the logits just seen, before halving takes over
FINEST_SHIFT = 1e-5  # of the largest margin
TOLERANCE = 1e-3  # of the all-open MACs
FAR = 0.02  # of all MACs: further from a budget is not what was asked for
LARGEST_EFFORT = 20.0  # moves the cosine above which tokens merge by 2: from none to all


class Use(NamedTuple):
    """Which branches ran for each image, bool `[n, branches]`, and patch tokens left after each point `[n, points]`."""

    ran: np.ndarray
    left: np.ndarray


def fixed_macs(spec: ProgramSpec, left: Left = None) -> int:
    """Return the MACs of a path on which every gate is closed."""
    every = zip(macs_by_branch(spec, left=left), spec.branches, strict=True)
    ungated = sum(m for m, b in every if b.gate is None)
    return stem_macs(spec) + head_macs(spec) + gate_macs(spec) + merge_macs(spec, left) + ungated


@torch.no_grad()
def usage(program: Program, images: np.ndarray, effort: float = 0.0) -> Use:
    """Return what ran for each image, uint8 `[n, height, width, 3]`; ungated branches always run, removed ones never.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    model = Vit(program).eval().requires_grad_(False)
    margins, left = _margins(model, batches(program.spec, images), effort)
    return Use(_ran(program.spec, margins), left)


def open_rates(program: Program, images: np.ndarray, effort: float = 0.0) -> np.ndarray:
    """Return whether each branch ran for each image: bool `[n, branches]`; see `usage`."""
    return usage(program, images, effort).ran


def _ran(spec: ProgramSpec, margins: np.ndarray) -> np.ndarray:
    ungated = np.array([b.gate is None for b in spec.branches])
    kept = np.array([not b.removed for b in spec.branches])
    return np.where(ungated, kept, margins > 0)


def _margins(model: Vit, work: list[Tensor], effort: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how far every gate is above its threshold, `[n, branches]`, and tokens left `[n, points]`.

    Each branch comes after the decisions before it.
    """
    spec, rows, left = model.spec, [], []
    for batch in work:
        margins = np.zeros((len(batch), len(spec.branches)))

        def decide(index: int, x: Tensor, margins: np.ndarray = margins) -> Tensor:
            branch = spec.branches[index]
            assert branch.gate is not None
            margin = model.gate_logit(branch, x) + effort - branch.gate.threshold
            margins[:, index] = margin.numpy()
            return (margin > 0).to(x.dtype)

        walked = model.walk(model.stem(batch), decide, trim=True, effort=effort)
        rows.append(margins)
        left.append(walked.tokens.numpy())
    return np.concatenate(rows), np.concatenate(left)


def image_macs(spec: ProgramSpec, ran: np.ndarray, left: np.ndarray | None = None) -> np.ndarray:
    """Return MACs of each image, int64 `[n]`, from what ran (`usage`); without `left`, of the most tokens there are."""
    rows = np.concatenate([ran, np.zeros((len(ran), 0), int) if left is None else left], axis=1).astype(np.int64)
    kinds, which = np.unique(rows, axis=0, return_inverse=True)
    count = ran.shape[1]
    macs = [run_macs(spec, kind[:count], None if left is None else kind[count:]) for kind in kinds]
    return np.array(macs, dtype=np.int64)[which.reshape(-1)]


def expected_macs(spec: ProgramSpec, ran: np.ndarray, left: np.ndarray | None = None) -> float:
    """Return mean MACs per image; see `image_macs`."""
    return float(image_macs(spec, ran, left).mean())


@torch.no_grad()
def calibrate_thresholds(program: Program, images: np.ndarray, budget: float) -> Program:
    """Return shift all thresholds by one effort so that `images` use `budget` of the all-open MACs on average.

    Closing one gate changes what later gates see, so the shift that would be right for the logits just seen is tried,
    inside a bracket that shrinks (its middle where the proposal leaves it). The shift nearest to the budget is taken.
    Merges whose number follows the image move too, as `effort` moves them on a device.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    gated = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    work, target = batches(spec, images), budget * total_macs(spec)
    low, high, shift = -np.inf, np.inf, 0.0
    largest = LARGEST_EFFORT if spec.adaptive else 0.0
    best, nearest = 0.0, np.inf
    for turn in range(PASSES):
        margins, left = _margins(model, work, shift)
        largest = largest or 2 * float(np.abs(margins).max()) + 1
        spent = expected_macs(spec, _ran(spec, margins), left)
        if abs(spent - target) < nearest:
            best, nearest = shift, abs(spent - target)
        if nearest <= TOLERANCE * total_macs(spec) or high - low <= FINEST_SHIFT * largest:
            break
        low, high = (max(low, -largest), shift) if spent > target else (shift, min(high, largest))
        mean_left = left.mean(axis=0).round()
        macs = np.array(macs_by_branch(spec, left=mean_left), dtype=float)[gated]
        if gated and turn < PROPOSALS:
            shift += shift_for(margins[:, gated], macs, target - fixed_macs(spec, mean_left))
        if not gated or turn >= PROPOSALS or not low < shift < high:
            shift = (low + high) / 2
    return replace(program, spec=moved(spec, best))


def moved(spec: ProgramSpec, effort: float) -> ProgramSpec:
    """Return the spec whose thresholds at effort 0 are those of `spec` at `effort`."""
    branches = tuple(
        b if b.gate is None else replace(b, gate=replace(b.gate, threshold=b.gate.threshold - effort))
        for b in spec.branches
    )
    merges = tuple(
        p if p.threshold is None else replace(p, threshold=_likeness(p.threshold + MERGE_EFFORT * effort))
        for p in spec.merges
    )
    return replace(spec, branches=branches, merges=merges)


def _likeness(value: float) -> float:
    return float(np.clip(value, LIKENESS.low, LIKENESS.high))


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
    spec = program.spec
    ran, left = usage(program, images)
    off = expected_macs(spec, ran, left) - budget_macs
    steps = [m for m, b in zip(macs_by_branch(spec), spec.branches, strict=True) if b.gate is not None]
    step = max(steps, default=0)
    found = (
        f"thresholds of {spec.name} cannot be set nearer to {budget_macs / whole_macs:.1%} of the MACs than "
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
