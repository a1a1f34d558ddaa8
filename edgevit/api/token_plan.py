"""The plan by which tokens merge while a model trains: given by hand, searched without labels, or the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgevit.compress.gate.threshold import usage
from edgevit.compress.tokens.control import share_left
from edgevit.compress.tokens.search import follow, search
from edgevit.compress.training.batches import evaluation
from edgevit.compress.usdc.resume import PLANNED, find_free
from edgevit.errors import BudgetError
from edgevit.images.labelled import LabelledSet, subset
from edgevit.program.macs import total_macs
from edgevit.program.program import Program, load_program, save_program
from edgevit.program.spec import ProgramSpec, shift_name
from edgevit.program.token_plans import least_share
from edgevit.program.tokens import read_plan, with_merges
from edgevit.util.progress import Say

SEARCH = "search"
SEARCH_IMAGES = 256
PLAN_IMAGES = 128  # tell what a plan that follows the images leaves


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run keeps what it found: its folder, whether it goes on, and whether this process writes."""

    folder: Path
    resume: bool
    writes: bool


def plan_tokens(tokens: str | None, given: Program, data: LabelledSet, share: float, place: Place, say: Say) -> Program:
    """Return the model with the plan of merges to train with.

    Args:
        tokens: a plan such as `4:60,8:60`, `search`, or None for the one that the model has, if any.
        given: the model.
        data: training images, for a search.
        share: part of the MACs that a searched plan is to leave.
        place: where a searched plan is kept.
        say: told what was found.

    Raises:
        BudgetError: the plan is none, the model does not allow it, or there is no saving to search for.
    """
    bare = without_merges(given)
    if tokens == SEARCH:
        return _searched(bare, data, share, place, say)
    if tokens is None:
        return given
    return bare.with_weights({}, with_merges(bare.spec, read_plan(tokens, bare.spec)))


def without_merges(program: Program) -> Program:
    """Return the Program with all its tokens."""
    return program.with_weights({}, replace(program.spec, merges=()))


def shifts_of(plan: Program) -> Mapping[str, np.ndarray]:
    """Return the arrays that the points of a Program have."""
    return {shift_name(p): plan.weights[shift_name(p)] for p in plan.spec.merges if p.shift}


def left_by(plan: Program, spec: ProgramSpec, data: LabelledSet) -> float:
    """Return the part of the MACs that a plan leaves, on average over training images where it follows them.

    Args:
        plan: a Program with it.
        spec: the model to train, which may have another head.
        data: training images.
    """
    merged = with_merges(spec, plan.spec.merges)
    if not merged.adaptive:
        return total_macs(merged) / total_macs(spec)
    left = usage(plan, _some_images(data, spec, PLAN_IMAGES)).left
    return share_left(merged, left.mean(axis=0))


def _searched(bare: Program, data: LabelledSet, share: float, place: Place, say: Say) -> Program:
    """Return the model with the plan that a search finds, or found when the run began."""
    kept = place.folder / PLANNED
    if place.resume and kept.exists():
        return load_program(kept)
    find_free(place.folder, resume=place.resume)  # a search takes minutes
    if share >= 1:
        raise BudgetError(
            "tokens are to be searched for, but nothing is to be saved by them: macs, or token_share of the recipe, "
            "leaves all MACs; give --macs below 1, or a plan"
        )
    share = max(share, least_share(bare.spec))
    say(f"looking for tokens to merge, down to {share:.0%} of the MACs")
    images = _some_images(data, bare.spec, SEARCH_IMAGES)
    budget = int(share * total_macs(bare.spec))
    found = search(bare, images, budget, reference=bare, say=say)
    plan = bare.with_weights(found.shifts, found.spec)
    chosen = follow(plan, images, budget, reference=bare, say=say, spare=False).chosen
    plan = plan.with_weights(chosen.shifts, chosen.spec)
    if place.writes:
        save_program(plan, kept, force=True)
    return plan


def _some_images(data: LabelledSet, spec: ProgramSpec, count: int) -> np.ndarray:
    """Return so many training images, uint8 `[n, height, width, 3]`: the same ones whenever they are asked for."""
    chosen = np.random.default_rng([*b"tokens"]).permutation(len(data))[:count]
    return evaluation(subset(data, chosen), spec.image)[0]
