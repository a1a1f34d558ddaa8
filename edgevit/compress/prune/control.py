"""Pruning in training: unit masks that follow importance under a budget on all-open MACs.

Importance is the diagonal of the empirical Fisher information of a mask on every unit (the mean over samples of the
squared derivative of the loss by the mask), and of one mask on the whole branch: the four granularities of the paper's
coefficients (whole MHSA, whole FFN, heads, neurons; arXiv 2310.11117, Eq. 10 and 11 as far as they could be read). How
they are estimated and chosen is our reconstruction: the plan is found exactly for the budget of the moment, so there is
no dual that could overshoot.

Nothing is chosen before importance says something: derivatives that are all exactly zero (a head of zeros, a student
that still is its teacher) are no measurement. A mask has a derivative at 0 too, so that a unit which is out goes on
being measured and can come back while the budget comes down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.prune.observe import output_linear
from edgevit.compress.prune.plan import BranchPlan, PrunePlan, plan_prune
from edgevit.compress.prune.score import BranchScore
from edgevit.errors import TrainingError
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.vit import Vit

Mean = Callable[[np.ndarray], np.ndarray]  # mean over processes


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks follow importance.

    Attributes:
        measure_every: steps from one measurement to the next, once importance may be used.
        replans: plans on the way down.
        memory: weight of past measurements.
        fewest_images: so many have to be measured, all processes together, before importance is used.
        returning: what the importance of a unit that is out counts; below 1, so that equals do not swap places.
    """

    measure_every: int = 2
    replans: int = 16
    memory: float = 0.95
    fewest_images: int = 32
    returning: float = 0.5


class MaskControl:
    """The unit masks of a `Vit` during training; `tap` is the model's hook."""

    def __init__(self, model: Vit, settings: MaskSettings, *, mean: Mean = lambda x: x) -> None:
        self.spec: ProgramSpec = model.spec
        self.settings, self.mean = settings, mean
        branches = [b for b in self.spec.branches if not b.removed]
        self._index = {output_linear(b): b for b in branches}
        self.masks = {b.name: torch.ones(b.units) for b in branches}
        self.units = {b.name: np.zeros(b.units) for b in branches}
        self.whole = {b.name: 0.0 for b in branches}
        self.measured = self.images = 0
        self._leaves: dict[str, Tensor] = {}
        self._measuring, self._size = False, 0

    @property
    def ready(self) -> bool:
        """Return whether importance was measured on enough images to choose by it."""
        return self.images >= self.settings.fewest_images

    def begin(self, step: int, size: int) -> None:
        """Start a micro-batch of optimiser step `step`, of `size` samples over all processes."""
        self._size = size
        self._leaves = {}
        self._measuring = not self.ready or step % self.settings.measure_every == 0

    def tap(self, name: str, value: Tensor) -> Tensor:
        """Return mask the input `[B, N, width]` of every branch's output linear."""
        branch = self._index.get(name)
        if branch is None:
            return value
        mask = self.masks[branch.name].to(value.device, value.dtype)
        if self._measuring and torch.is_grad_enabled():
            mask = mask.expand(len(value), -1).clone().requires_grad_(True)
            self._leaves[branch.name] = mask
        elif bool(mask.all()):
            return value
        if branch.kind == "mhsa":
            mask = mask.repeat_interleave(branch.head_dim, dim=-1)
        return value * (mask[:, None] if mask.ndim == 2 else mask)

    def observe(self) -> None:
        """Take the importance from the gradients of the micro-batch just run backwards."""
        found = {}
        for name, leaf in self._leaves.items():
            if leaf.grad is None:
                continue
            # The loss is a mean over the batch: times its length the derivative is per sample.
            derivative = leaf.grad.double() * len(leaf)
            units = self.mean((derivative**2).mean(dim=0).cpu().numpy())
            joint = (derivative * self.masks[name].to(leaf.device)).sum(dim=1)
            found[name] = units, float(self.mean((joint**2).mean().cpu().numpy()))
        self._leaves = {}
        if not any(units.any() for units, _ in found.values()):
            return
        kept = self.settings.memory if self.measured else 0.0
        for name, (units, whole) in found.items():
            if not self.masks[name].any():
                # Behind a gate that is closed for good nothing has a derivative; what it was worth alive stays known.
                whole = self.whole[name]
                if not units.any():
                    continue
            self.units[name] = kept * self.units[name] + (1 - kept) * units
            self.whole[name] = kept * self.whole[name] + (1 - kept) * whole
        self.measured += 1
        self.images += self._size

    def replan(self, left: float, *, returns: bool = True) -> PrunePlan:
        """Choose the units to keep when `left` of the all-open MACs may stay, and mask the others.

        Without `returns` what is out stays out.
        """
        scores = [self._score(b.name, returns=returns) for b in self.spec.branches]
        plan = plan_prune(scores, self.spec, left)
        for branch, planned in zip(self.spec.branches, plan.branches, strict=True):
            if not branch.removed:
                kept = torch.isin(torch.tensor(branch.kept), torch.tensor(planned.kept, dtype=torch.long)).float()
                self.masks[branch.name] = kept if returns else self.masks[branch.name] * kept
        return self.plan()

    def plan(self) -> PrunePlan:
        """Return the plan that the masks are."""
        branches = tuple(
            BranchPlan(
                name=b.name,
                kept=tuple(u for u, m in zip(b.kept, self._mask(b.name), strict=True) if m),
                loss=0.0,
            )
            for b in self.spec.branches
        )
        return PrunePlan(branches=branches, macs=0, budget_macs=0)

    def _mask(self, name: str) -> list[float]:
        """Return the mask of a branch as numbers; empty for one that was gone before."""
        return self.masks[name].tolist() if name in self.masks else []

    def _score(self, name: str, *, returns: bool) -> BranchScore:
        """Return the loss by number of units kept: the sum of what goes, all of it together for the whole branch."""
        branch = next(b for b in self.spec.branches if b.name == name)
        if branch.removed:
            return BranchScore(name=name, order=(), units=(0,), loss=(0.0,))
        mask, whole = self.masks[name].numpy() > 0, self.whole[name] / 2
        absent = self.settings.returning if returns else 0.0
        importance = np.where(mask, 1.0, absent) * self.units[name]
        order = np.lexsort((mask, importance) if returns else (importance, mask))
        loss = np.concatenate([[0.0], np.cumsum(importance[order])]) / 2
        # What is in goes together, what is out counts by the unit; a branch that is gone is worth what it was alive.
        together = whole + importance[~mask].sum() / 2 if mask.any() else max(absent * whole, loss[-1])
        loss[-1] = max(together, loss[-2])
        return BranchScore(
            name=name,
            order=tuple(branch.kept[i] for i in order),
            units=tuple(range(branch.units, -1, -1)),
            loss=tuple(float(v) for v in loss),
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "masks": dict(self.masks),
            "units": {n: torch.from_numpy(u) for n, u in self.units.items()},
            "whole": dict(self.whole),
            "measured": self.measured,
            "images": self.images,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            TrainingError: an earlier edgevit saved it, whose masks followed other rules.
        """
        if "images" not in state:
            raise TrainingError(
                "the checkpoint is an earlier edgevit's, in which units never came back: training that goes on from it "
                "would be neither that one nor this; train anew, or go on with that edgevit"
            )
        self.masks = dict(state["masks"])
        self.units = {n: u.numpy() for n, u in state["units"].items()}
        self.whole, self.measured, self.images = dict(state["whole"]), state["measured"], state["images"]
