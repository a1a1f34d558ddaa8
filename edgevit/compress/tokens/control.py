"""Merges whose number follows the image, in training: one effort for all thresholds holds their mean cost.

Weights that learn change how alike tokens are, and so how many merge. What the plan left of the unpruned model's MACs
when training began is held from step to step, by the `effort` that a device has too; at the end it goes into the
thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from edgevit.program.macs import total_macs
from edgevit.program.original import uncompressed
from edgevit.program.spec import ProgramSpec

GAIN = 0.5  # effort for a gap of all MACs, per step
FOLLOWS = 0.1  # how fast the mean follows the batch of the moment
Mean = Callable[[np.ndarray], np.ndarray]  # mean over processes


def share_left(spec: ProgramSpec, left: np.ndarray) -> float:
    """Return the part of the uncompressed model's MACs that merging alone leaves of it.

    Args:
        spec: with merges; its pruning and gates do not count.
        left: mean patch tokens after each point, `[points]`.
    """
    whole = uncompressed(spec)
    return total_macs(replace(whole, merges=spec.merges), left=left.round()) / total_macs(whole)


class TokenControl:
    """The thresholds of merges during training; `count` is the model's hook, and `effort` what moves them.

    `budget` is the part of the uncompressed model's MACs that merging has to leave; None only counts.
    """

    def __init__(self, spec: ProgramSpec, budget: float | None, *, mean: Mean = lambda x: x) -> None:
        self.spec, self.budget, self.mean = spec, budget, mean
        self.effort = 0.0
        self.left: np.ndarray | None = None
        self._seen: list[np.ndarray] = []

    def count(self, left: Tensor) -> None:
        """Take in how many patch tokens the images of a micro-batch had, `[B, points]`."""
        self._seen.append(left.double().mean(dim=0).cpu().numpy())

    def update(self) -> None:
        """Move the effort after an optimiser step."""
        if not self._seen:
            return
        now = self.mean(np.mean(self._seen, axis=0))
        self._seen = []
        self.left = now if self.left is None else self.left + FOLLOWS * (now - self.left)
        if self.budget is not None:
            self.effort -= GAIN * (share_left(self.spec, now) - self.budget)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"effort": self.effort, "left": None if self.left is None else self.left.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.effort, left = float(state["effort"]), state["left"]
        self.left = None if left is None else np.array(left)
