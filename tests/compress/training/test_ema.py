"""The average of a model's parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgevit.compress.training.ema import Ema


def layer(value: float) -> nn.Linear:
    found = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.fill_(value)
    return found


def test_young_averages_forget_faster() -> None:
    model, expected = layer(0.0), 0.0
    ema = Ema(model, 0.5)
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], start=1):
        ema.update(layer(value))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.averages["weight"][0, 0]) == pytest.approx(expected, rel=1e-6)
    ema.copy_to(model)
    assert model.bias.tolist() == pytest.approx([expected] * 2)


def test_without_decay_the_average_is_the_last() -> None:
    ema = Ema(layer(0.0), 0.0)
    ema.update(layer(3.0))
    assert ema.averages["weight"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_state_comes_back() -> None:
    ema, other = Ema(layer(0.0), 0.9), Ema(layer(7.0), 0.9)
    ema.update(layer(1.0))
    other.restore(ema.state())
    for average in (ema, other):
        average.update(layer(2.0))
    assert torch.equal(ema.averages["weight"], other.averages["weight"])
