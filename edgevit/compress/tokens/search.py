"""Choose where tokens are merged by what it does to the logits on unlabelled images, within a budget of MACs.

From spread points on, one plan for each number of points is moved block by block while the logits drift less for it, on
a few images; the best of each number is judged on all. A further point has to lower the drift by a tenth, because it
costs time that no MACs tell of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.program.token_plans import plan_at, starts, unreachable
from edgevit.program.tokens import merge_branches, write_plan
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import Say

SCREENED_IMAGES = 64
SCREENED_PLANS = 10  # for each number of points
WORTH_A_POINT = 0.9
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Found:
    """A plan and what it does on images.

    Attributes:
        spec: with the plan.
        drift: how far the logits move: mean KL divergence from the reference's classes; without classes, their mean
            squared difference over their variance.
        agreement: fraction of the images of which the same class is named; None without classes.
        images: how many.
    """

    spec: ProgramSpec
    drift: float
    agreement: float | None
    images: int

    @property
    def summary(self) -> str:
        """Return the plan and its drift in one sentence."""
        same = "" if self.agreement is None else f", {self.agreement:.1%} of the images keep their class"
        return f"tokens merged at {write_plan(self.spec)}: drift {self.drift:.3g} on {self.images} images{same}"


def search(program: Program, images: np.ndarray, budget_macs: int, *, reference: Program, say: Say) -> Found:
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
    judge = _Judge(program, images, reference)
    best = [_climb(judge, start, budget_macs) for start in starts(program.spec, budget_macs)]
    if not best:
        raise unreachable(program.spec, budget_macs)
    if len(images) > SCREENED_IMAGES:
        best = [judge.judge(found.spec, len(images)) for found in best]
    chosen = best[0]
    for found in best[1:]:
        if found.drift < WORTH_A_POINT * chosen.drift:
            chosen = found
    for found in best:
        say(("chosen: " if found is chosen else "not chosen: ") + found.summary)
    return chosen


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

    def __init__(self, program: Program, images: np.ndarray, reference: Program) -> None:
        self.spec = program.spec
        self._model = Vit(program).eval()
        self._work = batches(program.spec, images, BATCH)
        self._expected = [_logits(Vit(reference).eval(), batch) for batch in self._work]

    def judge(self, spec: ProgramSpec, images: int) -> Found:
        """Run a plan on the first `images` images, in whole batches."""
        self._model.spec = spec
        count, work = 0, []
        for batch, expected in zip(self._work, self._expected, strict=True):
            if count >= images:
                break
            work.append((expected, _logits(self._model, batch)))
            count += len(batch)
        expected, got = (torch.cat(part) for part in zip(*work, strict=True))
        decides = spec.head.decides
        return Found(
            spec=spec,
            drift=_divergence(expected, got) if decides else _difference(expected, got),
            agreement=float((expected.argmax(1) == got.argmax(1)).float().mean()) if decides else None,
            images=count,
        )


@torch.no_grad()
def _logits(model: Vit, batch: Tensor) -> Tensor:
    return model(batch, trim=True)  # type: ignore[no-any-return]


def _divergence(expected: Tensor, got: Tensor) -> float:
    target = F.log_softmax(expected, dim=-1)
    return float(F.kl_div(F.log_softmax(got, dim=-1), target, reduction="batchmean", log_target=True))


def _difference(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).square().mean() / expected.var(correction=0).clamp_min(1e-12))
