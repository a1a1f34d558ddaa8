"""Exponential moving average of a model's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Averages of a model's parameters; young averages forget faster (as timm's `ModelEmaV3` warms up)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.averages = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the parameters after one optimiser step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        live = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.averages.values()), live, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages into a model of the same shape."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.averages[name])

    def state(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return {"steps": self.steps, "averages": dict(self.averages)}

    def restore(self, state: dict[str, object]) -> None:
        """Go on from `state`."""
        averages, steps = state["averages"], state["steps"]
        assert isinstance(averages, dict) and isinstance(steps, int)
        self.steps = steps
        for name, value in averages.items():
            assert isinstance(value, Tensor)
            self.averages[name].copy_(value)
