"""Gates in training: one random decision per group of samples, and a bounded price on expected MACs.

The paper (arXiv 2310.11117) trains gates shared by (sub-)groups of the batch with a resource loss of weight 100; the
gate itself, the mean of logits over a group, its derivative and the price are our reconstruction. A plain
straight-through derivative takes the loss's slope at the decision that was drawn, and at an open gate that slope is
about zero, since the branch's weights are already of the best scale: what a gate is worth is underrated the more, the
more often it opens, and all gates hover. Here both slopes count alike (Heun's rule: ReinMax, arXiv 2304.08612), so
gates settle. UVC's dual overshoots because it integrates the whole gap from the first step; here the budget comes down
a ramp, so that the gap stays small, and the price is clipped.

A gate that has settled does not feel the price any more. So at the end of training, where decisions are as on the
device, one shift of all logits holds the budget, as the thresholds will: weights get used to the paths of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.gate.subgroups import Groups, split
from edgevit.compress.gate.threshold import shift_for
from edgevit.torch_form.vit import Vit

Gather = Callable[[Tensor], Tensor]  # this process's rows [b, ...] to the global batch's [B, ...], differentiable
Derivative = Literal["heun", "straight"]
UNIFORM_EDGE = 1e-6
FOLLOWS = 0.1  # how fast the shift follows what the batch of the moment asks for


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """How gates learn.

    Attributes:
        groups: which samples share a decision.
        seed: of the splits and the noise, which are functions of (seed, step).
        noise: scale of the logistic noise on the logits; a logit z opens with probability sigmoid(z / noise).
        noise_until: fraction of the stage after which decisions are as on the device: gates learn no more, and a shift
            of all logits holds the budget.
        stiffness: weight of half the squared gap between expected MACs and the budget (the paper's gamma, 100).
        price_rate: how fast the price follows the gap, per step.
        price_limit: largest price.
        derivative: of a decision. `heun` counts both slopes and MACs by their odds: for weights that learn too.
            `straight` is that of the noisy sigmoid, and MACs count as drawn: for gates alone, whose weights rest.
    """

    groups: Groups
    seed: int
    noise: float = 1.0
    noise_until: float = 0.8
    stiffness: float = 100.0
    price_rate: float = 0.5
    price_limit: float = 20.0
    derivative: Derivative = "heun"


class GateControl:
    """The gates of a `Vit` during training; `decide` is the model's hook.

    Per micro-batch: `begin`, the model's forward with `decide`, `penalty` into the loss. Per step: `update`.
    """

    def __init__(self, model: Vit, settings: GateSettings, *, gather: Gather = lambda x: x, rank: int = 0) -> None:
        self.model, self.settings, self.gather, self.rank = model, settings, gather, rank
        gated = [i for i, b in enumerate(model.spec.branches) if b.gate is not None]
        self.opened = {i: 1.0 for i in gated}
        self.price = 0.0
        self.shift: float | None = None
        self.dead: frozenset[int] = frozenset()
        self.costs: Sequence[float] = [0.0] * len(model.spec.branches)
        self.fixed, self.budget = 0.0, 1.0
        self._seen: dict[int, Tensor] = {}
        self._settled: dict[int, list[Tensor]] = {}
        self._spent: list[float] = []

    def set_costs(self, fixed: float, branches: Sequence[float], dead: frozenset[int] = frozenset()) -> None:
        """Set MACs as parts of the dense model's: what always runs, and every branch; `dead` ones have no unit left."""
        self.fixed, self.costs, self.dead = fixed, tuple(branches), dead

    def begin(self, step: int, micro: int, done: float, size: int, budget: float) -> None:
        """Draw the groups of one micro-batch of `size` samples over all processes.

        Args:
            step: number of the optimiser step, `micro` of the micro-batch in it: the seed of split and noise.
            micro: see `step`.
            done: how much of the stage is over, 0 to 1.
            size: samples of the micro-batch, all processes together.
            budget: expected MACs allowed now, as a fraction of the dense model's.
        """
        s = self.settings
        self.budget = budget
        self._place = (s.seed, step, micro)
        groups = split(s.groups, size, self._place)
        self._groups = torch.from_numpy(groups)
        self._count = int(groups[-1]) + 1
        self._noise = s.noise if done < s.noise_until else 0.0
        self._seen = {}

    def decide(self, index: int, x: Tensor) -> Tensor:
        """Return open (1) or not (0) for this process's samples `[b]`: a decision per group, with a derivative."""
        if index in self.dead:
            return x.new_zeros(len(x))
        local = self.model.gate_logit(self.model.spec.branches[index], x).float()
        logits = self.gather(local)
        groups = self._groups.to(x.device)
        means = logits.new_zeros(self._count).index_add(0, groups, logits) / torch.bincount(groups)
        opened, decisions, odds = self._draw(index, means)
        decisions = decisions[groups]
        self._seen[index] = odds[groups].mean()
        self.opened[index] = 0.95 * self.opened[index] + 0.05 * float(opened[groups].mean())
        start = self.rank * len(x)
        return decisions[start : start + len(x)].to(x.dtype)

    def _draw(self, index: int, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return decisions of all groups, 0 or 1; the same with their derivative; and what MACs are counted by."""
        if not self._noise:
            margins = means.detach()
            self._settled.setdefault(index, []).append(margins[self._groups.to(means.device)].cpu())
            opened = (margins + (self.shift or 0.0) > 0).to(means.dtype)
            # With a slope of 0 the gate still stays in the graph, for processes that share it.
            return opened, opened + 0.0 * (means - means.detach()), opened + 0.0 * means
        noise = np.random.default_rng((*self._place, index)).random(self._count).clip(UNIFORM_EDGE, 1 - UNIFORM_EDGE)
        logistic = torch.from_numpy(np.log(noise / (1 - noise)).astype(np.float32)).to(means.device)
        opened = (means.detach() + self._noise * logistic > 0).to(means.dtype)
        if self.settings.derivative == "straight":
            soft = torch.sigmoid(means / self._noise + logistic)
            decisions = opened + (soft - soft.detach())
            return opened, decisions, decisions
        odds = torch.sigmoid(means / self._noise)
        # Heun's rule at a decision d drawn with probability p: both ends of the step from closed to open count half.
        slope = (torch.where(opened > 0, 1 - odds, odds) / (2 * self._noise)).detach()
        return opened, opened + slope * (means - means.detach()), odds

    def penalty(self) -> Tensor:
        """Return price and squared gap of this micro-batch's MACs to the budget; unused MACs are lost accuracy."""
        spent = torch.tensor(self.fixed)
        if self._seen:
            spent = self.fixed + torch.stack([odds * self.costs[i] for i, odds in self._seen.items()]).sum()
        over = spent - self.budget
        self._spent.append(float(over.detach()))
        return self.price * over + self.settings.stiffness / 2 * over**2

    def update(self) -> dict[str, float]:
        """Move the price after an optimiser step; return the step's figures for the log."""
        over = float(np.mean(self._spent)) if self._spent else 0.0
        self._spent = []
        self._follow()
        limit = self.settings.price_limit
        self.price = float(np.clip(self.price + self.settings.price_rate * over, -limit, limit))
        return {"macs": over + self.budget, "macs_budget": self.budget, "price": self.price}

    def _follow(self) -> None:
        """Move the shift to where the logits of this step would meet the budget."""
        if not self._settled:
            return
        margins = np.stack([torch.cat(logits).double().numpy() for logits in self._settled.values()], axis=1)
        costs = np.array([self.costs[i] for i in self._settled])
        wanted = shift_for(margins, costs, self.budget - self.fixed)
        self.shift = wanted if self.shift is None else self.shift + FOLLOWS * (wanted - self.shift)
        self._settled = {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"price": self.price, "shift": self.shift, "opened": {str(i): v for i, v in self.opened.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.price, self.shift = state["price"], state["shift"]
        self.opened = {int(i): v for i, v in state["opened"].items()}
