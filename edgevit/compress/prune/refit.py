"""Sequential least-squares repair: every branch's output linear is fitted again inside the reduced model.

Units that are pruned change what a branch adds, merged tokens what attention reads, and later branches get other inputs
than they had in the dense model. Here the branches are visited in order with the inputs they really get, and each is
fitted to bring the stream back to where the dense model has it, errors of the branches before it included. A merged
token is to be where the dense model has the tokens that it stands for, on average. Nothing of it costs a device time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.prune.observe import PREFIX_WEIGHT, keep_input, output_linear, row_weights
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec, MergeSpec, shift_name
from edgevit.program.tokens import merge_at
from edgevit.torch_form import tokens
from edgevit.torch_form.stream import BATCH, batches, step_branch
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import track

RIDGES = (10.0, 1.0, 0.1, 0.01, 0.3, 3.0, 100.0)  # of the mean variance of an input
HELD_OUT = 5


@dataclass(kw_only=True)
class _Streams:
    """What one batch is in both models: N tokens in the dense one, n of them left in the reduced one.

    Attributes:
        dense: `[B, N, D]`.
        x: `[B, n, D]`.
        sizes: how many patches each of the n stands for, `[B, n, 1]`; None: one each.
        means: over which of the N each of the n is the mean, `[B, n, N]`; None: they are the same.
        runs: 1 for every image in which the branch at hand runs, `[B]`; None: in all.
    """

    dense: Tensor
    x: Tensor
    sizes: tokens.Sizes = None
    means: Tensor | None = None
    runs: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """Return where the dense model has the tokens that are left, `[B, n, D]`."""
        return self.dense if self.means is None else self.means @ self.dense

    @property
    def there(self) -> Tensor:
        """Return 1 for every token that there is, `[B, n]`; images that merge more have fewer (`tokens`)."""
        return torch.ones(self.x.shape[:2]) if self.sizes is None else (self.sizes[..., 0] > 0).float()

    def decide(self, model: Vit, branch: BranchSpec) -> None:
        """Ask the branch's gate in which images it runs."""
        self.runs = None
        if branch.removed:
            self.runs = torch.zeros(len(self.x))
        elif branch.gate is not None:
            seen = tokens.weighed(self.x, self.sizes, model.spec.stem.prefix)
            self.runs = (model.gate_logit(branch, seen) > branch.gate.threshold).float()

    def rows(self, *, run: bool) -> Tensor:
        """Return 1 for every token of the images in which the branch runs, or does not: `[B, n]`."""
        if self.runs is None:
            return self.there * float(run)
        return self.there * (self.runs if run else 1 - self.runs)[:, None]

    def step(self, model: Vit, branch: BranchSpec) -> None:
        """Take the reduced stream through the branch, or its skip rows, as its gate said."""
        if self.runs is None or self.runs.all():
            self.x = step_branch(model, branch, self.x, None, self.sizes)
            return
        skipped = self.x + model.skip_rows(branch)[: self.x.shape[1]]
        if not self.runs.any():
            self.x = skipped
        else:
            self.x = torch.where(
                self.runs[:, None, None] > 0, step_branch(model, branch, self.x, None, self.sizes), skipped
            )

    def merge(self, model: Vit, point: MergeSpec) -> None:
        """Merge tokens, and note of which tokens of the dense model each is the mean."""
        n, dim = self.x.shape[1:]
        means = torch.eye(n).expand(len(self.x), n, n) if self.means is None else self.means
        shift = model.array(shift_name(point)) if point.shift else None
        both, self.sizes = tokens.merge(torch.cat([self.x, means], dim=2), self.sizes, point, model.spec, 0.0, shift)
        self.x, self.means = both[..., :dim], both[..., dim:]


def held_out(images: np.ndarray) -> np.ndarray:
    """Return the images that `refit` fits nothing to: every `HELD_OUT`-th batch; none where there are too few."""
    kept_apart: np.ndarray = images[np.arange(len(images)) // BATCH % HELD_OUT == HELD_OUT - 1]
    return kept_apart


@torch.no_grad()
def refit(reduced: Program, dense: Program, images: np.ndarray, *, prefix_weight: float = PREFIX_WEIGHT) -> Program:
    """Fit `proj`, `fc2` and the skip rows of `reduced` to the stream of `dense`.

    The target of a branch's output is `dense stream after it - reduced stream before it`; the ridge pulls weights to
    what they were. Gates decide as on a device: a branch's output linear is fitted to the images in which it runs, its
    skip rows to the others. Branches before the first one that is reduced, that a gate skips, or before which tokens
    merge, are left bit for bit.

    Args:
        reduced: pruned, gated, or with merged tokens.
        dense: what it was made of.
        images: calibration images, uint8 `[n, height, width, 3]`; those `held_out` only choose how far weights may go.
        prefix_weight: how much a prefix row counts.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec, touched = reduced.spec, False
    student, teacher = (Vit(p).eval().requires_grad_(False) for p in (reduced, dense))
    streams = [_Streams(dense=teacher.stem(b), x=student.stem(b)) for b in batches(spec, images)]
    pairs = list(zip(spec.branches, dense.spec.branches, strict=True))
    for branch, whole in track(pairs, "Repairing branches"):
        for stream in streams:
            stream.dense = step_branch(teacher, whole, stream.dense)
        for stream in streams:
            stream.decide(student, branch)
        skipped = any(stream.runs is not None and not stream.runs.all() for stream in streams)
        reduced_here = branch.kept != whole.kept
        if branch.skip and skipped and (touched or reduced_here or branch.gate is not None):
            student.array(f"{branch.name}.skip").copy_(_missing_rows(student, streams))
        if touched or reduced_here:
            _fit_linear(student, branch, streams, prefix_weight)
        touched = touched or reduced_here or (branch.gate is not None and skipped)
        for stream in streams:
            stream.step(student, branch)
        if (point := merge_at(spec, branch.name)) is not None:
            touched = True
            for stream in streams:
                stream.merge(student, point)
    return student.to_program()


def _missing_rows(model: Vit, streams: list[_Streams]) -> Tensor:
    """Return what is missing in every prefix row and, on average, in the patch rows: `[prefix + 1, D]`.

    Only images in which the branch does not run count.
    """
    total, count = torch.zeros(1), torch.zeros(1)
    for stream in streams:
        kinds, there = model.indicator[: stream.x.shape[1]].T, stream.rows(run=False)[..., None]
        total = total + kinds @ ((stream.target - stream.x) * there).sum(dim=0)
        count = count + kinds @ there.sum(dim=0)
    return total / count


def _fit_linear(model: Vit, branch: BranchSpec, streams: list[_Streams], prefix_weight: float) -> None:
    """Add to the output linear's weight and bias the weighted ridge regression of what it misses on its input.

    Image-level directions have as many samples as there are images, so a fit without shrinkage learns the images by
    heart: the ridge is the one that does best on every `HELD_OUT`-th batch, which no fit ever sees.

    Args:
        model: changed in place.
        branch: whose output linear to fit.
        streams: per batch, the dense stream after the branch and the reduced one before it.
        prefix_weight: how much a prefix row counts.
    """
    name, dim = output_linear(branch), model.spec.dim
    fitted, held = NormalEquations(branch.width + 1, dim), NormalEquations(branch.width + 1, dim)
    inner: list[Tensor] = []
    for number, stream in enumerate(streams):
        if stream.runs is not None and not stream.runs.any():
            continue
        target = stream.target
        missing = target - step_branch(model, branch, stream.x, keep_input(branch, inner), stream.sizes)
        side = held if number % HELD_OUT == HELD_OUT - 1 else fitted
        side.add(inner.pop(), missing, row_weights(model.spec, target, prefix_weight) * stream.rows(run=True))
    if not fitted.total or (len(streams) >= HELD_OUT and not held.total):
        return
    best = min(fitted.solutions(RIDGES), key=held.error)
    if held.total and held.error(best) >= 0:
        return
    model.array(f"{name}.weight").add_(best[:-1].float())
    model.array(f"{name}.bias").add_(best[-1].float())


class NormalEquations:
    """Normal equations of a linear with a constant: inputs `[rows, width - 1]` to targets `[rows, dim]`."""

    def __init__(self, width: int, dim: int) -> None:
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, dim, dtype=torch.float64)

    @property
    def total(self) -> float:
        return float(self.gram[-1, -1])

    def add(self, a: Tensor, target: Tensor, weights: Tensor) -> None:
        """Add rows of inputs `[B, N, width - 1]` and targets `[B, N, dim]` that count `weights` `[B, N]`."""
        self.add_rows(torch.cat([a, torch.ones(*a.shape[:-1], 1)], dim=-1), target, weights)

    def add_rows(self, a: Tensor, target: Tensor, weights: Tensor) -> None:
        """Add rows whose inputs `[B, N, width]` hold the constant already."""
        a = a.flatten(0, 1)
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
