"""Choose where tokens are merged by what it does to the logits on unlabelled images, within a budget of MACs.

From spread points on, one plan for each number of points is moved block by block while the logits drift less for it, on
a few images; the best of each number is judged on all. A further point has to lower the drift by a tenth, because it
costs time that no MACs tell of. Tokens that matter are kept apart at every point (`guard`). The plan that is found has
a variant whose numbers follow the image at the same mean cost (`per_image`); `follow` takes it unless it drifts clearly
more, on images that had no part in its thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.compress.tokens.drift import drift, drifts, logits
from edgevit.compress.tokens.guard import GUARD_IMAGES, guards
from edgevit.compress.tokens.per_image import follow_images
from edgevit.compress.tokens.reserve import Reserve, find_reserve
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec, shift_name
from edgevit.program.token_plans import plan_at, starts, unreachable
from edgevit.program.tokens import merge_branches, write_plan
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import Say

SCREENED_IMAGES = 64
SCREENED_PLANS = 10  # for each number of points
WORTH_A_POINT = 0.9
BATCH = 32
SURE = 1.0  # standard errors by which numbers that follow the image may drift more than fixed ones


@dataclass(frozen=True, kw_only=True)
class Found:
    """A plan and what it does on images.

    Attributes:
        spec: with the plan.
        drift: how far the logits move: mean KL divergence from the reference's classes; without classes, their mean
            squared difference over their variance.
        agreement: fraction of the images of which the same class is named; None without classes.
        images: how many.
        macs: mean MACs of an image.
        shifts: arrays that the points need.
    """

    spec: ProgramSpec
    drift: float
    agreement: float | None
    images: int
    macs: float = 0.0
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

    @property
    def summary(self) -> str:
        """Return the plan and its drift in one sentence."""
        same = "" if self.agreement is None else f", {self.agreement:.1%} of the images keep their class"
        share = self.macs / total_macs(replace(self.spec, merges=()))
        mean = f", {share:.1%} of the MACs on average" if self.spec.adaptive else ""
        return f"tokens merged at {write_plan(self.spec)}: drift {self.drift:.3g} on {self.images} images{same}{mean}"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much less a plan drifts than another, with its standard error: paired over `images` that set no threshold."""

    mean: float
    error: float
    images: int

    @property
    def loses(self) -> bool:
        """Return whether the plan drifts more, by more than what these images say by chance."""
        return self.mean < -SURE * self.error

    @property
    def summary(self) -> str:
        """Return it in one sentence."""
        drift = f"drift {'less' if self.mean >= 0 else 'more'} by {abs(self.mean):.3g}"
        return (
            f"numbers that follow the image {drift}, standard error {self.error:.2g}, on {self.images} images that set "
            "no thresholds"
        )


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """A fixed plan, its variant that follows the image with what it gains (None: impossible), and the choice."""

    fixed: Found
    follows: Found | None
    chosen: Found
    gain: Gain | None = None


def search(
    program: Program,
    images: np.ndarray,
    budget_macs: int,
    *,
    reference: Program,
    say: Say,
) -> Found:
    """Return the plan of few points within the budget whose logits are nearest the reference's.

    Args:
        program: what merges tokens; it has no points yet.
        images: calibration images, uint8 `[n, height, width, 3]`.
        budget_macs: MACs per image that are left, all gates open.
        reference: whose logits count: the dense model.
        say: told what was chosen.

    Raises:
        BudgetError: no plan of a few points reaches the budget.
    """
    judge = _Judge(program, images, reference, guarded=True)
    best = [_climb(judge, start, budget_macs) for start in starts(program.spec, budget_macs)]
    if not best:
        raise unreachable(program.spec, budget_macs)
    if len(images) > SCREENED_IMAGES:
        best = [judge.judge(found.spec, len(images)) for found in best]
    fixed = best[0]
    for found in best[1:]:
        if found.drift < WORTH_A_POINT * fixed.drift:
            fixed = found
    _tell(say, best, fixed)
    return fixed


def follow(
    program: Program,
    images: np.ndarray,
    budget_macs: int,
    *,
    reference: Program,
    say: Say,
    always: bool = False,
    spare: bool = True,
) -> Candidates:
    """Judge the plan of a Program and its variant whose numbers of pairs follow the image, and choose.

    The variant is chosen unless it drifts more than the fixed plan by more than chance would have it (`Gain.loses`):
    the fixed plan was searched on these very images and drifts more on others, and only the variant has an `effort`.

    Args:
        program: merges fixed numbers of pairs.
        images: calibration images, uint8 `[n, height, width, 3]`.
        budget_macs: MACs per image, on average where they follow the image.
        reference: whose logits count: the dense model.
        say: told what was chosen.
        always: whether the numbers follow the image wherever they can.
        spare: whether the variant gets a point for little effort where it needs one (`reserve`).
    """
    judge = _Judge(program, images, reference)
    fixed = judge.judge(program.spec, len(images))
    reserve = find_reserve(program, judge.work) if spare else None
    judge.add(reserve.shifts if reserve else {})
    spec = follow_images(program, judge.work, budget_macs, reserve)
    if spec is None:
        return Candidates(fixed=fixed, follows=None, chosen=fixed)
    follows, gain = judge.judge(spec, len(images)), _gain(judge, program, budget_macs, reserve)
    if gain is not None:
        say(gain.summary)
    chosen = follows if always or (gain is not None and not gain.loses) else fixed
    _tell(say, (fixed, follows), chosen)
    return Candidates(fixed=fixed, follows=follows, chosen=chosen, gain=gain)


def _gain(judge: _Judge, program: Program, budget_macs: int, reserve: Reserve | None) -> Gain | None:
    """Return what numbers that follow the image gain, each half of the images with the thresholds of the other.

    None where there are none, or too few images. What a half costs more with thresholds of the other, the other
    costs less with its own.
    """
    if sum(map(len, judge.work)) < 2:
        return None
    differences = []
    for one in (0, 1):
        spec = follow_images(program, [batch[one::2] for batch in judge.work if len(batch) > one], budget_macs, reserve)
        if spec is None:
            return None
        differences.append(judge.drifts(program.spec, 1 - one) - judge.drifts(spec, 1 - one))
    found = torch.cat(differences).double()
    return Gain(mean=float(found.mean()), error=float(found.std(correction=0)) / len(found) ** 0.5, images=len(found))


def _tell(say: Say, plans: Sequence[Found], chosen: Found) -> None:
    for found in plans:
        say(("chosen: " if found is chosen else "not chosen: ") + found.summary)


def _climb(judge: _Judge, start: ProgramSpec, budget_macs: int) -> Found:
    """Move the points of a plan by a block, all or one, while that helps."""
    best, tried = judge.judge(start, SCREENED_IMAGES), {_blocks(start)}
    better = True
    while better and len(tried) < SCREENED_PLANS:
        better = False
        for blocks in _moves(_blocks(best.spec)):
            if blocks in tried or len(tried) >= SCREENED_PLANS:
                continue
            tried.add(blocks)
            plan = plan_at(judge.spec, blocks, budget_macs)
            if plan is None:
                continue
            found = judge.judge(plan, SCREENED_IMAGES)
            if found.drift < best.drift:
                best, better = found, True
                break
    return best


def _moves(blocks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield all points one block later or earlier, then each alone; order and distinctness are kept."""
    changes: Sequence[tuple[int, ...]] = [tuple(range(len(blocks)))]
    changes = [*changes, *((i,) for i in range(len(blocks)))] if len(blocks) > 1 else changes
    for which in changes:
        for step in (1, -1):
            moved = tuple(b + step if i in which else b for i, b in enumerate(blocks))
            if moved[0] >= 0 and list(moved) == sorted(set(moved)):
                yield moved


def _blocks(spec: ProgramSpec) -> tuple[int, ...]:
    names = merge_branches(spec)
    return tuple(names.index(point.after) for point in spec.merges if point.after in names)


class _Judge:
    """Runs plans of one Program on images and holds their logits against the reference's."""

    def __init__(self, program: Program, images: np.ndarray, reference: Program, *, guarded: bool = False) -> None:
        self.spec, self.work = program.spec, batches(program.spec, images, BATCH)
        self._model = Vit(program).eval()
        self._expected = [logits(Vit(reference).eval(), batch) for batch in self.work]
        self._guards = guards(program, self.work[: -(-GUARD_IMAGES // BATCH)]) if guarded else {}
        self.add({f"{name}.merge.shift": shift.numpy() for name, shift in self._guards.items()})

    def add(self, shifts: Mapping[str, np.ndarray]) -> None:
        """Add arrays that points of a plan need."""
        for name, shift in shifts.items():
            self._model.arrays[name.replace(".", "/")] = nn.Parameter(torch.from_numpy(shift), requires_grad=False)

    def judge(self, spec: ProgramSpec, images: int) -> Found:
        """Run a plan on the first `images` images, in whole batches."""
        spec = self._model.spec = self._guarded(spec)
        count, work, macs = 0, [], list[int]()
        for batch, expected in zip(self.work, self._expected, strict=True):
            if count >= images:
                break
            logits, left = _answers(self._model, batch)
            work.append((expected, logits))
            macs += [total_macs(spec, left=row) for row in left]
            count += len(batch)
        expected, got = (torch.cat(part) for part in zip(*work, strict=True))
        return Found(
            spec=spec,
            drift=drift(spec, expected, got),
            agreement=float((expected.argmax(1) == got.argmax(1)).float().mean()) if spec.head.decides else None,
            images=count,
            macs=float(np.mean(macs)),
            shifts=self._shifts(spec),
        )

    def drifts(self, spec: ProgramSpec, half: int) -> Tensor:
        """Run a plan on every other image, from number `half`, and return the drift of each, `[n]`."""
        self._model.spec = spec = self._guarded(spec)
        work = [(e[half::2], b[half::2]) for e, b in zip(self._expected, self.work, strict=True) if len(b) > half]
        return torch.cat([drifts(spec, expected, _answers(self._model, batch)[0]) for expected, batch in work])

    def _guarded(self, spec: ProgramSpec) -> ProgramSpec:
        merges = tuple(replace(point, shift=point.shift or point.after in self._guards) for point in spec.merges)
        return replace(spec, merges=merges)

    def _shifts(self, spec: ProgramSpec) -> dict[str, np.ndarray]:
        names = [shift_name(point) for point in spec.merges if point.shift]
        return {name: self._model.array(name).detach().numpy() for name in names}


@torch.no_grad()
def _answers(model: Vit, batch: Tensor) -> tuple[Tensor, np.ndarray]:
    x, sizes, left = model.walk(model.stem(batch), trim=True)
    return model.head(x, None, sizes), left.numpy()
