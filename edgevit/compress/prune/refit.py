"""Sequential least-squares repair: every branch's output linear is fitted again inside the pruned model.

`shrink` compensates each branch on the inputs it had in the dense model. Once earlier branches have changed, those
inputs have changed too; here the branches are visited in order with the inputs they really get, and each is fitted to
bring the stream back to where the dense model has it, errors of the branches before it included.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.prune.observe import PREFIX_WEIGHT, keep_input, output_linear, row_weights
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.torch_form.stream import batches, row_means, step_branch
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import track

RIDGES = (10.0, 1.0, 0.1, 0.01, 0.3, 3.0, 100.0)  # of the mean variance of an input
HELD_OUT = 5


@torch.no_grad()
def refit(pruned: Program, dense: Program, images: np.ndarray, *, prefix_weight: float = PREFIX_WEIGHT) -> Program:
    """Fit `proj`, `fc2` and the skip rows of `pruned` to the stream of `dense` on uint8 images `[n, height, width, 3]`.

    The target of a branch's output is `dense stream after it - pruned stream before it`; the ridge pulls weights to
    what they were. All gates are open; repair before gates are trained (under the decisions of gates this fit measured
    worse than none). Branches before the first one that is reduced are left bit for bit.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec, touched = pruned.spec, False
    student, teacher = (Vit(p).eval().requires_grad_(False) for p in (pruned, dense))
    streams = [(teacher.stem(b), student.stem(b)) for b in batches(spec, images)]
    pairs = list(zip(spec.branches, dense.spec.branches, strict=True))
    for branch, whole in track(pairs, "Repairing branches"):
        streams = [(step_branch(teacher, whole, target), x) for target, x in streams]
        touched = touched or branch.kept != whole.kept
        if touched and branch.skip and branch.removed:
            rows = [row_means(student, target - x) * len(x) for target, x in streams]
            student.array(f"{branch.name}.skip").copy_(torch.stack(rows).sum(dim=0) / len(images))
        if touched and not branch.removed:
            _fit_linear(student, branch, streams, prefix_weight)
        streams = [(target, step_branch(student, branch, x)) for target, x in streams]
    return student.to_program()


def _fit_linear(model: Vit, branch: BranchSpec, streams: list[tuple[Tensor, Tensor]], prefix_weight: float) -> None:
    """Add to the output linear's weight and bias the weighted ridge regression of what it misses on its input.

    Image-level directions have as many samples as there are images, so a fit without shrinkage learns the images by
    heart: the ridge is the one that does best on every `HELD_OUT`-th batch, which no fit ever sees.

    Args:
        model: changed in place.
        branch: whose output linear to fit.
        streams: per batch, the dense stream after the branch and the pruned stream before it, `[B, N, D]`.
        prefix_weight: how much a prefix row counts.
    """
    name, dim = output_linear(branch), model.spec.dim
    fitted, held = _Normal(branch.width + 1, dim), _Normal(branch.width + 1, dim)
    inner: list[Tensor] = []
    for number, (target, x) in enumerate(streams):
        missing = target - step_branch(model, branch, x, keep_input(branch, inner))
        side = held if number % HELD_OUT == HELD_OUT - 1 else fitted
        side.add(inner.pop(), missing, row_weights(model.spec, target, prefix_weight))
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
        """Return weight and bias `[width, dim]` for every ridge; the constant is not shrunk."""
        mean_a, mean_t = self.gram[-1, :-1] / self.total, self.cross[-1] / self.total
        covariance = self.gram[:-1, :-1] / self.total - torch.outer(mean_a, mean_a)
        shared = self.cross[:-1] / self.total - torch.outer(mean_a, mean_t)
        values, vectors = torch.linalg.eigh(covariance)
        for ridge in ridges:
            shrunk = values.clamp_min(0) + ridge * values.mean() + 1e-12
            weight = vectors @ ((vectors.T @ shared) / shrunk[:, None])
            yield torch.cat([weight, (mean_t - mean_a @ weight)[None]])

    def error(self, solution: Tensor) -> float:
        """Return the change of the squared error by a solution; below 0 it helps."""
        return float((solution * (self.gram @ solution - 2 * self.cross)).sum())
