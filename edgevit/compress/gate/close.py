"""Close branches for all images, the one that is missed least first, and repair what is left each time.

A few dozen noisy steps choose branches by luck: two draws of the noise differ by a third in drift. This choice has no
luck in it. A branch's loss is measured with those before it closed and what is left fitted to the dense model's stream
(`prune.refit`). Losses rise as others close, so only branches that seemed cheapest when last measured are asked again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.gate.initial import FLOOR, Skips, all_but, predictor
from edgevit.compress.prune.refit import refit
from edgevit.compress.tokens.drift import drift
from edgevit.program.macs import macs_by_branch, run_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches, row_means
from edgevit.torch_form.tokens import Sizes
from edgevit.torch_form.vit import Vit

JUDGED_IMAGES = 32
FITTED_IMAGES = 96
LEAST_SAVING = 0.005  # of the MACs: less is not worth a loss
APART = 3.0  # between the logits of branches that close one after the other
SWAY = 0.5  # deviation of a gate's logit over images: only the last one that closed follows the image


@dataclass(frozen=True, kw_only=True)
class Closed:
    """The branches (indices) in the order they closed, and what every branch cost when it was last measured.

    `losses` are nats per image for all of the MACs, `[branches]`; `program` is what was repaired.
    """

    order: tuple[int, ...]
    losses: np.ndarray
    program: Program


@torch.no_grad()
def close_branches(
    program: Program, dense: Program, fitted: np.ndarray, judged: np.ndarray, budget: float, skips: Skips
) -> Closed:
    """Close gated branches until no more than `budget` of the MACs is left.

    Args:
        program: with a gate on every branch, see `attach_gates`.
        dense: whose stream and logits to keep.
        fitted: images for the repair, uint8 `[n, height, width, 3]`.
        judged: images on which losses are measured.
        budget: MACs left, as a part of `program`'s all-open ones.
        skips: what each branch costs alone.
    """
    spec, order = program.spec, list[int]()
    ran = np.array([not b.removed for b in spec.branches])
    whole, macs = run_macs(spec, ran), np.array(macs_by_branch(spec), dtype=float)
    can = [i for i, b in enumerate(spec.branches) if b.gate is not None and macs[i] > LEAST_SAVING * whole]
    losses = skips.losses.mean(axis=0) * whole / np.maximum(macs, 1)
    work, teacher = batches(spec, judged[:JUDGED_IMAGES]), Vit(dense).eval()
    expected = torch.cat([teacher(batch, trim=True) for batch in work])
    left = program.with_weights({f"{b.name}.gate.bias": np.ones(1, np.float32) for b in spec.branches if b.gate})
    while can and run_macs(spec, ran) > budget * whole:
        if order:
            left = refit(left, dense, fitted[:FITTED_IMAGES])
        best, rows = _cheapest(left, work, expected, can, losses, macs / whole)
        order.append(best)
        can.remove(best)
        ran[best] = False
        left = _without(left, best, rows)
    return Closed(order=tuple(order), losses=losses, program=left)


def _without(program: Program, index: int, rows: Tensor) -> Program:
    branches = list(program.spec.branches)
    branches[index] = replace(branches[index], kept=(), gate=None)
    spec = replace(program.spec, branches=tuple(branches))
    return program.with_weights({f"{branches[index].name}.skip": rows.numpy()}, spec)


def _cheapest(
    program: Program, work: list[Tensor], expected: Tensor, can: list[int], losses: np.ndarray, shares: np.ndarray
) -> tuple[int, Tensor]:
    """Return the branch of `can` whose loss per MAC is least, and its skip rows; `losses` take in what was measured."""
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    streams = [_streams(model, batch) for batch in work]

    def loss(walked: list[tuple[Tensor, Sizes]]) -> float:
        return drift(spec, expected, torch.cat([model.head(x, sizes=sizes) for x, sizes in walked]))

    now = loss([stream[-1] for stream in streams])
    measured: dict[int, Tensor] = {}
    while (best := min(can, key=lambda i: float(losses[i]))) not in measured:
        branch, before = spec.branches[best], [stream[best] for stream in streams]
        outputs = [model.branch(branch, x, None, sizes) for x, sizes in before]
        rows = sum((row_means(model, y) * len(y) for y in outputs), torch.zeros(1)) / len(expected)
        model.array(f"{branch.name}.skip").copy_(rows)
        closed = [model.walk(x, all_but(best), trim=True, start=best, sizes=sizes) for x, sizes in before]
        losses[best] = (loss([(walked.x, walked.sizes) for walked in closed]) - now) / shares[best]
        measured[best] = rows
    return best, measured[best]


def _streams(model: Vit, batch: Tensor) -> list[tuple[Tensor, Sizes]]:
    """Return the stream before every branch and after the last, all gates open, and its sizes."""
    found: list[tuple[Tensor, Sizes]] = [(model.stem(batch), None)]
    for index in range(len(model.spec.branches)):
        x, sizes = found[-1]
        found.append(model.walk(x, start=index, stop=index + 1, sizes=sizes)[:2])
    return found


def gates_of(program: Program, closed: Closed, skips: Skips) -> Program:
    """Return `program`, repaired, with gates that close in the order found, each swayed a little by the image.

    With one threshold for all, the last one that closed follows the image, and `effort` opens and closes whole
    branches in the order of their worth. Closed branches keep the weights that they had.

    Args:
        program: with a gate on every branch.
        closed: what `close_branches` made of it.
        skips: what each gate reads, and what its branch costs alone, of some images.
    """
    spec = program.spec
    live = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    rest = sorted((i for i in live if i not in closed.order), key=lambda i: float(closed.losses[i]))
    changed = {name: array for name, array in closed.program.weights.items() if name in program.weights}
    for rank, index in enumerate([*closed.order, *rest], start=1 - len(closed.order)):
        name, inputs = spec.branches[index].name, skips.inputs[:, index].astype(np.float64)
        weight, _ = predictor(inputs, np.log(skips.losses[:, index] + FLOOR), always=True)
        weight = weight * SWAY / max(float((inputs @ weight).std()), 1e-9)
        bias = np.array([APART * rank - float((inputs @ weight).mean())])
        changed |= {f"{name}.gate.weight": weight.astype(np.float32), f"{name}.gate.bias": bias.astype(np.float32)}
    return program.with_weights(changed)
