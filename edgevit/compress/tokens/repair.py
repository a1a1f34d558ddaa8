"""Fit a Program that merges tokens to the dense model's stream again, where that brings its logits nearer.

Least squares in closed form (`prune.refit`), no label and no gradient; it costs nothing on the device. The more tokens
merge, the more it brings: deit_tiny at half of its MACs drifts by a quarter less, at 0.7 no less (reports/reference).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgevit.compress.prune.refit import held_out, refit
from edgevit.compress.tokens.drift import drift, logits
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit

WORTH_REPAIR = 0.9  # of the drift: less is gained than the weights of a model that merges nothing are worth


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A Program after its repair, or as it was where that did not help, and its drift on images that no fit saw."""

    program: Program
    helped: bool
    before: float
    after: float
    images: int

    @property
    def summary(self) -> str:
        """Return what was done in one sentence."""
        figures = f"drift {self.before:.3g} -> {self.after:.3g} on {self.images} images kept apart"
        done = "output linears fitted to the dense model's stream" if self.helped else "output linears left as they are"
        return f"{done}: {figures}"


def repair(program: Program, dense: Program, images: np.ndarray) -> Repaired:
    """Fit the output linears of a Program that merges tokens again, and keep that where it drifts clearly less.

    Args:
        program: merges fixed numbers of pairs; may be pruned.
        dense: what it was made of.
        images: calibration images, uint8 `[n, height, width, 3]`.
    """
    fitted = refit(program, dense, images)
    kept_apart = held_out(images)
    judged = kept_apart if len(kept_apart) else images
    work = batches(dense.spec, judged)
    expected, before, after = (torch.cat([logits(Vit(p).eval(), b) for b in work]) for p in (dense, program, fitted))
    drifts = [drift(dense.spec, expected, got) for got in (before, after)]
    helped = drifts[1] < WORTH_REPAIR * drifts[0]
    return Repaired(
        program=fitted if helped else program, helped=helped, before=drifts[0], after=drifts[1], images=len(judged)
    )
