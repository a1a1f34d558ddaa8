"""Set the thresholds of gates so that the expected MACs on given images meet a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgevit.models.macs import gate_macs, head_macs, macs_by_branch, stem_macs, total_macs
from edgevit.models.program import Program
from edgevit.models.stream import batches
from edgevit.models.vit import Vit
from edgevit.spec import ProgramSpec

BISECTIONS = 14
TOLERANCE = 1e-3  # of the all-open MACs


def fixed_macs(spec: ProgramSpec) -> int:
    """MACs of a path on which every gate is closed."""
    ungated = sum(m for m, b in zip(macs_by_branch(spec), spec.branches, strict=True) if b.gate is None)
    return stem_macs(spec) + head_macs(spec) + gate_macs(spec) + ungated


@torch.no_grad()
def open_rates(program: Program, images: np.ndarray, effort: float = 0.0) -> np.ndarray:
    """Whether each branch ran for each image: bool `[n, branches]`; ungated branches always run, removed ones never.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    model = Vit(program).eval().requires_grad_(False)
    return _decisions(model, batches(program.spec, images), effort)


def _decisions(model: Vit, work: list[Tensor], effort: float) -> np.ndarray:
    hard, rows = model.hard_gates(effort), []
    for batch in work:
        ran = np.tile([not b.removed for b in model.spec.branches], (len(batch), 1))

        def decide(index: int, x: Tensor, ran: np.ndarray = ran) -> Tensor:
            g = hard(index, x)
            ran[:, index] = g.numpy() > 0
            return g

        model.blocks(model.stem(batch), decide)
        rows.append(ran)
    return np.concatenate(rows)


def expected_macs(spec: ProgramSpec, ran: np.ndarray) -> float:
    """Mean MACs per image, given which branches ran (`open_rates`)."""
    branches = np.array(macs_by_branch(spec))
    gated = np.array([b.gate is not None for b in spec.branches])
    return fixed_macs(spec) + float((ran[:, gated] * branches[gated]).sum(axis=1).mean())


@torch.no_grad()
def calibrate_thresholds(program: Program, images: np.ndarray, budget: float) -> Program:
    """Shift all thresholds by one amount so that `images` use `budget` of the all-open MACs on average.

    Bisection on the shift, as closing one gate changes what later gates see. Of the shifts tried, the one nearest to
    the budget is taken.

    Raises:
        ImagesError: the images are not what the model takes.
    """
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    work, target = batches(spec, images), budget * total_macs(spec)
    low, high = -16.0, 16.0
    tried: dict[float, float] = {}
    for effort in (0.0, *[None] * BISECTIONS):
        shift = (low + high) / 2 if effort is None else effort
        macs = expected_macs(spec, _decisions(model, work, shift))
        tried[shift] = abs(macs - target)
        if tried[shift] <= TOLERANCE * total_macs(spec):
            break
        low, high = (low, shift) if macs > target else (shift, high)
    shift = min(tried, key=lambda s: tried[s])
    branches = tuple(
        b if b.gate is None else replace(b, gate=replace(b.gate, threshold=b.gate.threshold - shift))
        for b in spec.branches
    )
    return replace(program, spec=replace(spec, branches=branches))
