"""How much a model's output suffers from removing units, measured without labels.

OPTIN (arXiv 2403.17921) masks one unit and runs the network; here one branch at a time is reduced to a few levels in a
stated order, compensated, and the rest of the network is run: the score is the KL divergence of the logits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.prune.compensate import columns_of, compensated, removal_order
from edgevit.compress.prune.observe import Statistics, keep_input, output_linear
from edgevit.compress.prune.score import BranchScore, measured_levels
from edgevit.errors import BudgetError
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.torch_form.stream import batches, step_branch
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import track

NEURONS_AT_ONCE = 8
BATCH = 4


@torch.no_grad()
def score(program: Program, images: np.ndarray, statistics: Statistics) -> tuple[BranchScore, ...]:
    """Score every branch on uint8 images `[n, height, width, 3]`; 64 images are enough to rank branches.

    Raises:
        ImagesError: the images are not what the model takes.
        BudgetError: no removal changes any output.
    """
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    orders = {b.name: _order(program, b, statistics) for b in spec.branches}
    levels = {b.name: measured_levels(b.units) for b in spec.branches}
    folded = {b.name: _reductions(model, b, statistics, orders[b.name], levels[b.name]) for b in spec.branches}
    totals = {b.name: np.zeros(len(levels[b.name])) for b in spec.branches}
    for batch in track(batches(spec, images, BATCH), "Measuring importance"):
        streams = [model.stem(batch)]
        for branch in spec.branches:
            streams.append(step_branch(model, branch, streams[-1]))
        reference = F.log_softmax(model.head(streams[-1]), dim=-1)
        for index, branch in enumerate(spec.branches):
            totals[branch.name] += _losses(model, index, streams[index], folded[branch.name], reference)
    if not any(total.any() for total in totals.values()):
        raise BudgetError(
            f"removing units of {spec.name} changes no output on any of {len(images)} images, so nothing says which to "
            "remove: is the head still untrained, or is there a single class? Train the model first"
        )
    return tuple(
        BranchScore(
            name=b.name,
            order=orders[b.name],
            units=levels[b.name],
            loss=tuple(float(v) / len(images) for v in totals[b.name]),
        )
        for b in spec.branches
    )


def _order(program: Program, branch: BranchSpec, statistics: Statistics) -> tuple[int, ...]:
    if branch.removed:
        return ()
    weight = program.weights[f"{output_linear(branch)}.weight"]
    unit, at_once = (branch.head_dim, 1) if branch.kind == "mhsa" else (1, NEURONS_AT_ONCE)
    order = removal_order(weight, statistics[branch.name].covariance, unit, at_once=at_once)
    return tuple(branch.kept[p] for p in order)


Reduction = tuple[Tensor, Tensor, Tensor]  # kept columns [k], weight [k, dim], bias [dim] or [N, dim]


def _reductions(
    model: Vit, branch: BranchSpec, statistics: Statistics, order: tuple[int, ...], levels: tuple[int, ...]
) -> list[Reduction]:
    """Return the compensated output linear of every level below the first; a branch that goes leaves skip rows."""
    result = []
    for kept in levels[1:]:
        known, name = statistics[branch.name], output_linear(branch)
        weight, bias = model.array(f"{name}.weight").numpy(), model.array(f"{name}.bias").numpy()
        if kept:
            units = sorted(order[-kept:])
            keep = columns_of([branch.kept.index(u) for u in units], branch.head_dim if branch.kind == "mhsa" else 1)
            weight, bias = compensated(weight, bias, known.mean, known.covariance, keep)
            result.append((torch.from_numpy(keep), torch.from_numpy(weight).float(), torch.from_numpy(bias).float()))
        else:
            rows = model.indicator @ torch.from_numpy(known.output).float()
            result.append((torch.arange(0), torch.from_numpy(weight[:0]), rows))
    return result


def _losses(model: Vit, index: int, x: Tensor, reductions: list[Reduction], reference: Tensor) -> np.ndarray:
    """Return the summed KL of every level of one branch on a batch; the stream `x` before the branch is reused."""
    branch, inner = model.spec.branches[index], list[Tensor]()
    if branch.removed:
        return np.zeros(1)
    model.branch(branch, x, keep_input(branch, inner))
    losses = [0.0]
    for keep, weight, bias in reductions:
        y = x + (inner[0][..., keep] @ weight + bias)
        for later in model.spec.branches[index + 1 :]:
            y = step_branch(model, later, y)
        losses.append(float(F.kl_div(F.log_softmax(model.head(y), -1), reference, reduction="sum", log_target=True)))
    return np.array(losses)
