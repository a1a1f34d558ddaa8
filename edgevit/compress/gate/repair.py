"""Fit a gated Program to the dense model's stream again, under the decisions of its gates, where that pays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edgevit.compress.gate.judge import answers
from edgevit.compress.prune.refit import held_out, refit
from edgevit.compress.tokens.drift import drift, logits
from edgevit.compress.tokens.repair import WORTH_REPAIR
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit


def repair_gates(program: Program, dense: Program, images: np.ndarray, settle: Callable[[Program], Program]) -> Program:
    """Return the Program with output linears and skip rows fitted again, or as it was where that helps little.

    Each output linear is fitted to the images in which its branch runs, skip rows to the others (`prune.refit`): least
    squares in closed form, no label and no gradient. What gates read moves with it, so thresholds are set again.

    Args:
        program: with gates whose thresholds are set.
        dense: what it was made of.
        images: calibration images, uint8 `[n, height, width, 3]`; drift is judged on those that no fit sees.
        settle: sets thresholds.
    """
    fitted = settle(refit(program, dense, images))
    judged = held_out(images)
    judged = judged if len(judged) else images
    before, after = (gated_drift(one, dense, judged) for one in (program, fitted))
    return fitted if after < WORTH_REPAIR * before else program


@torch.no_grad()
def gated_drift(program: Program, dense: Program, images: np.ndarray) -> float:
    """Return how far the gated Program's logits are from those of the dense one on uint8 images."""
    teacher = Vit(dense).eval()
    expected = torch.cat([logits(teacher, batch) for batch in batches(dense.spec, images)])
    got = answers(program, images, description="Judging gates").logits
    return drift(dense.spec, expected, torch.from_numpy(got))
