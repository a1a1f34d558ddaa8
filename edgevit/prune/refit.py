"""Sequential least-squares repair: every branch's output linear is fitted again inside the pruned model.

`shrink` compensates each branch on the inputs it had in the dense model. Once earlier branches have changed, those
inputs have changed too; here the branches are visited in order with the inputs they really get, and each is fitted to
bring the stream back to where the dense model has it, errors of the branches before it included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgevit.models.program import Program
from edgevit.models.stream import batches, row_means, step_branch
from edgevit.models.vit import Vit
from edgevit.progress import track
from edgevit.prune.observe import PREFIX_WEIGHT, keep_input, output_linear, row_weights
from edgevit.spec import BranchSpec

RIDGES = (10.0, 1.0, 0.1, 0.01, 0.3, 3.0, 100.0)  # of the mean variance of an input
HELD_OUT = 5
PRIOR_IMAGES = 4


@torch.no_grad()
def refit(pruned: Program, dense: Program, images: np.ndarray, *, prefix_weight: float = PREFIX_WEIGHT) -> Program:
    """Fit `proj`, `fc2` and the skip rows of `pruned` to the stream of `dense` on uint8 images `[n, height, width, 3]`.

    The target of a branch's output is `dense stream after it - pruned stream before it`; the ridge pulls weights to
    what they were. Gates decide as on the device: a branch is fitted on the images for which it runs, its skip rows on
    the others. Branches before the first one that is reduced or gated are left bit for bit.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec = pruned.spec
    student, teacher = (Vit(p).eval().requires_grad_(False) for p in (pruned, dense))
    hard, touched = student.hard_gates(), False
    streams = [(teacher.stem(b), student.stem(b)) for b in batches(spec, images)]
    pairs = list(zip(spec.branches, dense.spec.branches, strict=True))
    for index, (branch, whole) in enumerate(track(pairs, "Repairing branches")):
        works = [
            _work(teacher, student, branch, whole, hard(index, x) if branch.gate else None, d, x) for d, x in streams
        ]
        touched = touched or branch.kept != whole.kept or any(float(w.open.min()) == 0 for w in works)
        if touched and branch.skip:
            _fit_skip(student, branch, works)
        if touched and not branch.removed:
            _fit_linear(student, branch, works, prefix_weight)
        streams = [(w.target, _advance(student, branch, w)) for w in works]
    return student.to_program()


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One batch at one branch: dense stream after it `target`, pruned stream before it `x`, `[B, N, D]`; `open [B]`."""

    target: Tensor
    x: Tensor
    open: Tensor

    @property
    def wanted(self) -> Tensor:
        return self.target - self.x


def _work(
    teacher: Vit, student: Vit, branch: BranchSpec, whole: BranchSpec, gate: Tensor | None, dense: Tensor, x: Tensor
) -> _Work:
    runs = torch.full((len(x),), 0.0 if branch.removed else 1.0) if gate is None else gate
    return _Work(target=step_branch(teacher, whole, dense), x=x, open=runs)


def _advance(student: Vit, branch: BranchSpec, work: _Work) -> Tensor:
    g = work.open[:, None, None]
    return work.x + g * student.branch(branch, work.x) + (1 - g) * student.skip_rows(branch)


def _fit_skip(model: Vit, branch: BranchSpec, works: list[_Work]) -> None:
    """The mean of what is missing where the branch does not run; pulled to what it was when that is rare."""
    rows, closed = model.array(f"{branch.name}.skip"), float(sum((1 - w.open).sum() for w in works))
    total = sum(row_means(model, w.wanted[w.open == 0]) * (w.open == 0).sum() for w in works if (w.open == 0).any())
    if closed:
        rows.copy_((total + PRIOR_IMAGES * rows) / (closed + PRIOR_IMAGES))


def _fit_linear(model: Vit, branch: BranchSpec, works: list[_Work], prefix_weight: float) -> None:
    """Weighted ridge regression of what the output linear misses on its input, added to its weight and bias.

    Image-level directions have as many samples as there are images, so a fit without shrinkage learns the images by
    heart: the ridge is the one that does best on every `HELD_OUT`-th batch, which no fit ever sees.
    """
    name, dim = output_linear(branch), model.spec.dim
    fitted, held = _Normal(branch.width + 1, dim), _Normal(branch.width + 1, dim)
    inner: list[Tensor] = []
    for number, work in enumerate(works):
        missing = work.wanted - model.branch(branch, work.x, keep_input(branch, inner))
        side = held if number % HELD_OUT == HELD_OUT - 1 else fitted
        side.add(inner.pop(), missing, row_weights(model.spec, work.target, prefix_weight) * work.open[:, None])
    if not fitted.total:
        return
    best = min(fitted.solutions(RIDGES), key=held.error)
    if held.total and held.error(best) >= 0:
        return
    model.array(f"{name}.weight").add_(best[:-1].float())
    model.array(f"{name}.bias").add_(best[-1].float())


class _Normal:
    """Normal equations of a linear with a constant: inputs `[rows, width - 1]` to targets `[rows, dim]`."""

    def __init__(self, width: int, dim: int) -> None:
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, dim, dtype=torch.float64)

    @property
    def total(self) -> float:
        return float(self.gram[-1, -1])

    def add(self, a: Tensor, target: Tensor, weights: Tensor) -> None:
        a = torch.cat([a, torch.ones(*a.shape[:-1], 1)], dim=-1).flatten(0, 1)
        scaled = a * weights.reshape(-1, 1)
        self.gram += (scaled.T @ a).double()
        self.cross += (scaled.T @ target.flatten(0, 1)).double()

    def solutions(self, ridges: tuple[float, ...]) -> Iterator[Tensor]:
        """Weight and bias `[width, dim]` for every ridge; the constant is not shrunk."""
        mean_a, mean_t = self.gram[-1, :-1] / self.total, self.cross[-1] / self.total
        covariance = self.gram[:-1, :-1] / self.total - torch.outer(mean_a, mean_a)
        shared = self.cross[:-1] / self.total - torch.outer(mean_a, mean_t)
        values, vectors = torch.linalg.eigh(covariance)
        for ridge in ridges:
            shrunk = values.clamp_min(0) + ridge * values.mean() + 1e-12
            weight = vectors @ ((vectors.T @ shared) / shrunk[:, None])
            yield torch.cat([weight, (mean_t - mean_a @ weight)[None]])

    def error(self, solution: Tensor) -> float:
        """Change of the squared error by a solution; below 0 it helps."""
        return float((solution * (self.gram @ solution - 2 * self.cross)).sum())
