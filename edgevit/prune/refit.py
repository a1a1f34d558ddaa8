"""Sequential least-squares repair: every branch's output linear is fitted again inside the pruned model.

`shrink` compensates each branch on the inputs it had in the dense model. Once earlier branches have changed, those
inputs have changed too; here the branches are visited in order with the inputs they really get, and each is fitted to
bring the stream back to where the dense model has it, errors of the branches before it included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgevit.models.program import Program
from edgevit.models.stream import batches, row_means, step_branch
from edgevit.models.vit import Vit
from edgevit.progress import track
from edgevit.prune.observe import PREFIX_WEIGHT, keep_input, output_linear, row_weights
from edgevit.spec import BranchSpec

RIDGE = 1e-2
PULL = 1.0


@torch.no_grad()
def refit(
    pruned: Program,
    dense: Program,
    images: np.ndarray,
    *,
    prefix_weight: float = PREFIX_WEIGHT,
    ridge: float = RIDGE,
    pull: float = PULL,
) -> Program:
    """Fit `proj`, `fc2` and the skip rows of `pruned` to the stream of `dense` on uint8 images `[n, height, width, 3]`.

    The target of branch i is `f_dense(x_dense) + pull * (x_dense - x_pruned)`; the ridge pulls weights to what they
    were. Branches before the first one that was reduced are left bit for bit.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec = pruned.spec
    student, teacher = (Vit(p).eval().requires_grad_(False) for p in (pruned, dense))
    streams = [(teacher.stem(b), student.stem(b)) for b in batches(spec, images)]
    touched = False
    pairs = list(zip(spec.branches, dense.spec.branches, strict=True))
    for branch, whole in track(pairs, "Repairing branches"):
        targets = [step_branch(teacher, whole, x) for x, _ in streams]
        touched = touched or branch.kept != whole.kept
        if touched:
            wanted = [t - x + (pull - 1) * (d - x) for t, (d, x) in zip(targets, streams, strict=True)]
            if branch.removed:
                _fit_skip(student, branch, wanted)
            else:
                weights = [row_weights(spec, t, prefix_weight) for t in targets]
                _fit_linear(student, branch, [x for _, x in streams], wanted, weights, ridge)
        streams = [(t, step_branch(student, branch, x)) for t, (_, x) in zip(targets, streams, strict=True)]
    return student.to_program()


def _fit_skip(model: Vit, branch: BranchSpec, wanted: list[Tensor]) -> None:
    """The mean of what is missing, per prefix row and over the patch rows."""
    if not branch.skip:
        return
    rows = [row_means(model, t) * len(t) for t in wanted]
    model.array(f"{branch.name}.skip").copy_(torch.stack(rows).sum(dim=0) / sum(len(t) for t in wanted))


def _fit_linear(
    model: Vit, branch: BranchSpec, inputs: list[Tensor], wanted: list[Tensor], weights: list[Tensor], ridge: float
) -> None:
    """Weighted ridge regression of what the output linear misses on its input, added to its weight and bias."""
    name = output_linear(branch)
    width, dim = branch.width + 1, model.spec.dim
    gram, cross = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dim, dtype=torch.float64)
    inner: list[Tensor] = []
    for x, target, rows in zip(inputs, wanted, weights, strict=True):
        missing = (target - model.branch(branch, x, keep_input(branch, inner))).reshape(-1, dim)
        a = inner.pop()
        a = torch.cat([a, torch.ones(*a.shape[:-1], 1)], dim=-1).reshape(-1, width)
        scaled = a * rows.reshape(-1, 1)
        gram += (scaled.T @ a).double()
        cross += (scaled.T @ missing).double()
    # The constant is not shrunk: with the centred covariance the ridge acts on the weight alone.
    total = gram[-1, -1]
    mean_a, mean_t = gram[-1, :-1] / total, cross[-1] / total
    covariance = gram[:-1, :-1] / total - torch.outer(mean_a, mean_a)
    shared = cross[:-1] / total - torch.outer(mean_a, mean_t)
    covariance += (ridge * covariance.diagonal().mean() + 1e-12) * torch.eye(width - 1, dtype=torch.float64)
    change = torch.linalg.solve(covariance, shared)
    model.array(f"{name}.weight").add_(change.float())
    model.array(f"{name}.bias").add_((mean_t - mean_a @ change).float())
