"""What pruning needs to know about every branch, collected in one pass over unlabelled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec, ProgramSpec
from edgevit.torch_form.layers import Tap
from edgevit.torch_form.stream import accumulate, batches, row_means, step_branch
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import track

PREFIX_WEIGHT = 20.0


@dataclass(frozen=True, kw_only=True)
class BranchStatistics:
    """Moments of the input `a` of a branch's output linear (`proj` or `fc2`) and the mean of the branch's output.

    Attributes:
        mean: `[width]`, float64.
        covariance: `[width, width]`, float64, centred.
        output: `[prefix + 1, dim]`, mean output of each prefix row and of the patch rows (the `skip` rows).
    """

    mean: np.ndarray
    covariance: np.ndarray
    output: np.ndarray


Statistics = Mapping[str, BranchStatistics]


def output_linear(branch: BranchSpec) -> str:
    """Return the array prefix of the branch's last linear."""
    return f"{branch.name}.{'proj' if branch.kind == 'mhsa' else 'fc2'}"


def keep_input(branch: BranchSpec, kept: list[Tensor]) -> Tap:
    """Return a tap that appends the input of the branch's output linear to `kept`."""
    wanted = output_linear(branch)

    def tap(name: str, value: Tensor) -> Tensor:
        if name == wanted:
            kept.append(value)
        return value

    return tap


def row_weights(spec: ProgramSpec, x: Tensor, prefix_weight: float) -> Tensor:
    """Return weight `[B, N]` of the rows of a stream `[B, N, D]` in least squares.

    An error matters relative to the row's standard deviation, as the LayerNorm that reads it divides by that: without
    this a few outlier tokens (variance 1000 times the others' in vit_tiny) would decide everything. Prefix rows
    count `prefix_weight` times.
    """
    weights = 1 / (x.var(dim=-1) + spec.norm_eps)
    weights[:, : spec.stem.prefix] *= prefix_weight
    return weights


class Moments:
    """Running weighted moments of rows `[rows, width]`, accumulated in float64."""

    def __init__(self, width: int) -> None:
        self.weight = 0.0
        self.sum = torch.zeros(width, dtype=torch.float64)
        self.product = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Add `rows [..., width]`, each counted `weights [...]` times."""
        weights, rows = weights.reshape(-1, 1), rows.reshape(-1, rows.shape[-1])
        scaled = rows * weights
        self.weight += float(weights.sum())
        self.sum += scaled.sum(dim=0).double()
        self.product += (scaled.T @ rows).double()

    def mean(self) -> np.ndarray:
        return np.asarray(self.sum / self.weight)

    def covariance(self) -> np.ndarray:
        mean = self.sum / self.weight
        return np.asarray(self.product / self.weight - torch.outer(mean, mean))


@torch.no_grad()
def collect(program: Program, images: np.ndarray, *, prefix_weight: float = PREFIX_WEIGHT) -> Statistics:
    """Return every branch's moments over uint8 images `[n, height, width, 3]`, in one forward pass, all gates open.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    live = [b for b in spec.branches if not b.removed]
    moments = {b.name: Moments(b.width) for b in live}
    outputs: dict[str, Tensor] = {}
    inner: list[Tensor] = []

    for batch in track(batches(spec, images), "Collecting statistics"):
        x = model.stem(batch)
        for branch in spec.branches:
            before, x = x, step_branch(model, branch, x, keep_input(branch, inner))
            if not branch.removed:
                moments[branch.name].add(inner.pop(), row_weights(spec, x, prefix_weight))
                accumulate(outputs, branch.name, row_means(model, x - before) * len(batch))
    return {
        b.name: BranchStatistics(
            mean=moments[b.name].mean(),
            covariance=moments[b.name].covariance(),
            output=np.asarray(outputs[b.name] / len(images)),
        )
        for b in live
    }
