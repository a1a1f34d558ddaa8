"""First gates without any gradient: measure what skipping costs each image, and predict it from the gate's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.gate.threshold import fixed_macs
from edgevit.errors import BudgetError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches, mean_outputs
from edgevit.torch_form.tokens import Sizes, weighed
from edgevit.torch_form.vit import Decide, Vit
from edgevit.util.progress import track

BATCH = 8
FLOOR = 1e-3  # nats; losses below it are noise
RIDGES = (1.0, 10.0, 100.0, 1000.0, 10000.0)


@dataclass(frozen=True, kw_only=True)
class Skips:
    """What skipping one branch at a time costs.

    Attributes:
        losses: KL divergence of the logits in nats, `[n, branches]`; 0 for branches without a gate.
        inputs: what each gate reads, the normalised pooled row, `[n, branches, dim]`.
    """

    losses: np.ndarray
    inputs: np.ndarray


@torch.no_grad()
def measure_skips(program: Program, images: np.ndarray) -> Skips:
    """Skip every gated branch alone on uint8 images `[n, height, width, 3]`; its skip rows take its place."""
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    losses, inputs = [], []
    for batch in track(batches(spec, images, BATCH), "Measuring branches"):
        streams: list[tuple[Tensor, Sizes]] = [(model.stem(batch), None)]
        for index in range(len(spec.branches)):
            x, sizes = streams[-1]
            streams.append(model.walk(x, start=index, stop=index + 1, sizes=sizes)[:2])
        reference = _log_odds(model, *streams[-1])
        lost = torch.zeros(len(batch), len(spec.branches))
        for index, branch in enumerate(spec.branches):
            if branch.gate is not None:
                x, sizes = streams[index]
                walked = model.walk(x, all_but(index), trim=True, start=index, sizes=sizes)
                skipped = _log_odds(model, walked.x, walked.sizes)
                lost[:, index] = (reference.exp() * (reference - skipped)).sum(dim=-1)
        losses.append(lost)
        inputs.append(torch.stack([_gate_input(model, x, sizes) for x, sizes in streams[:-1]], dim=1))
    return Skips(losses=torch.cat(losses).numpy(), inputs=torch.cat(inputs).numpy())


def all_but(closed: int) -> Decide:
    """Return decisions that open every gate but one."""
    return lambda index, x: x.new_tensor(float(index != closed))


def _log_odds(model: Vit, x: Tensor, sizes: Sizes) -> Tensor:
    return model.head(x, sizes=sizes).log_softmax(dim=-1)


def _gate_input(model: Vit, x: Tensor, sizes: Sizes) -> Tensor:
    """Return the row all gates of a model read (they share one pool), without the gate's weight: `[B, D]`."""
    prefix = model.spec.stem.prefix
    pooled = x[:, 0] if prefix else weighed(x, sizes, prefix).mean(dim=1)
    return F.layer_norm(pooled, (pooled.shape[-1],), eps=model.spec.norm_eps)


def predictor(inputs: np.ndarray, values: np.ndarray, *, always: bool = False) -> tuple[np.ndarray, float]:
    """Fit ridge regression `inputs @ weight + bias` to `values [n]`, the ridge chosen by leave-one-out.

    Where no ridge predicts better than the mean, the weight is 0, unless there is `always` to be one.
    """
    mean, middle = inputs.mean(axis=0), float(values.mean())
    x, y = (inputs - mean).astype(np.float64), values - middle
    kernel = x @ x.T
    best, chosen = np.inf if always else float(np.sum(y**2)) * (len(y) / max(len(y) - 1, 1)) ** 2, None
    for ridge in RIDGES:
        hat = np.linalg.solve(kernel + ridge * np.eye(len(y)), kernel).T + 1 / len(y)
        left_out = float(np.sum(((y - hat @ y) / (1 - np.diag(hat))) ** 2))
        if left_out < best:
            best, chosen = left_out, ridge
    if chosen is None:
        return np.zeros(inputs.shape[1]), middle
    weight = x.T @ np.linalg.solve(kernel + chosen * np.eye(len(y)), y)
    return weight, middle - float(mean @ weight)


def start_gates(program: Program, images: np.ndarray) -> tuple[Program, Skips]:
    """Return the Program with mean outputs as skip rows, and what skipping each branch costs each image.

    Args:
        program: with gates attached.
        images: uint8 `[n, height, width, 3]`.

    Raises:
        BudgetError: skipping branches changes no output.
    """
    spec = program.spec
    means = mean_outputs(Vit(program).eval().requires_grad_(False), batches(spec, images))
    live = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    started = program.with_weights(
        {f"{spec.branches[i].name}.skip": means[spec.branches[i].name].numpy() for i in live}
    )
    skips = measure_skips(started, images)
    if live and not skips.losses[:, live].any():
        raise BudgetError(
            f"skipping a branch of {spec.name} changes no output on any of {len(images)} images, so gates have nothing "
            "to learn from: is the head still untrained, or is there a single class? Train the model first"
        )
    return started, skips


def initial_gates(program: Program, images: np.ndarray, budget: float, spread: float) -> Program:
    """Return the Program with mean outputs as skip rows and the gates of `predicted_gates`; see these."""
    started, skips = start_gates(program, images)
    return predicted_gates(started, skips, budget, spread)


def predicted_gates(started: Program, skips: Skips, budget: float, spread: float) -> Program:
    """Set each gate's logit to `spread * log(predicted loss / MACs)` plus one shift.

    Args:
        started: with gates attached (their weights are replaced).
        skips: what skipping each branch costs.
        budget: expected MACs as a fraction of the all-open ones.
        spread: how decided the gates are.
    """
    spec = started.spec
    live = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    macs = np.array(macs_by_branch(spec), dtype=float)[live]
    fits = [predictor(skips.inputs[:, i], np.log(skips.losses[:, i] + FLOOR)) for i in live]
    logits = np.stack([skips.inputs[:, i] @ w + b for i, (w, b) in zip(live, fits, strict=True)], axis=1) - np.log(macs)
    shift = _shift(spread * logits, macs, budget * total_macs(spec) - fixed_macs(spec))
    changed: dict[str, np.ndarray] = {}
    for i, (weight, bias), mac in zip(live, fits, macs, strict=True):
        name = spec.branches[i].name
        changed[f"{name}.gate.weight"] = spread * weight
        changed[f"{name}.gate.bias"] = np.array([np.clip(spread * (bias - np.log(mac)) + shift, -1e3, 1e3)])
    return started.with_weights(changed)


def _shift(logits: np.ndarray, macs: np.ndarray, target: float) -> float:
    """Return what to add to logits `[n, gates]` so that the expected MACs of the gated branches are `target`."""
    low, high = -float(logits.max()) - 20, -float(logits.min()) + 20
    for _ in range(60):
        middle = (low + high) / 2
        spent = float((macs / (1 + np.exp(-np.clip(logits + middle, -50, 50)))).sum(axis=1).mean())
        low, high = (middle, high) if spent < target else (low, middle)
    return high
