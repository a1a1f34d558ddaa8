"""The mean cost of merges is held while tokens become more or less alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevit.compress.tokens.control import TokenControl, share_left
from edgevit.program.macs import total_macs
from edgevit.program.tokens import most_left
from tests.tiny import tiny_program

PLAN = "1:0-27@0.3,2:3-17@0.3"


def test_the_share_is_of_the_uncompressed_model() -> None:
    options: dict[str, Any] = {"depth": 4, "image": (64, 64)}
    spec = tiny_program(**options, gated=True, skip=True, removed=("b03_ffn",), tokens=PLAN).spec
    bare, merged = tiny_program(**options).spec, tiny_program(**options, tokens="1:10,2:5").spec
    left = np.array(most_left(merged), float)
    assert share_left(spec, left) == total_macs(merged) / total_macs(bare)


@pytest.mark.parametrize("alike", [0.5, -0.5])
def test_effort_follows_until_the_mean_is_what_was_planned(alike: float) -> None:
    """As if a unit of effort kept 20 tokens more, and training had moved them by `alike` units."""
    spec = tiny_program(depth=4, image=(64, 64), tokens=PLAN).spec
    control = TokenControl(spec, share_left(spec, np.array([50.0, 40.0])))
    for _ in range(300):
        kept = np.array([50.0, 40.0]) + 20 * (control.effort + alike)
        control.count(torch.from_numpy(np.stack([kept + 5, kept - 5])))
        control.update()
    assert control.effort == pytest.approx(-alike, abs=0.05)
    assert control.left == pytest.approx([50.0, 40.0], abs=1.5)


def test_without_a_budget_tokens_are_only_counted() -> None:
    spec = tiny_program(depth=4, image=(64, 64), tokens=PLAN).spec
    control = TokenControl(spec, None)
    control.count(torch.tensor([[40.0, 30.0]]))
    control.update()
    assert control.effort == 0 and control.left is not None and control.left.tolist() == [40.0, 30.0]


def test_state_comes_back() -> None:
    spec = tiny_program(depth=4, image=(64, 64), tokens=PLAN).spec
    one, other = TokenControl(spec, 0.8), TokenControl(spec, 0.8)
    one.update()  # nothing was counted yet
    assert one.effort == 0 and one.left is None
    other.restore(one.state())
    assert other.left is None
    one.count(torch.tensor([[60.0, 50.0]]))
    one.update()
    other.restore(one.state())
    assert other.effort == one.effort != 0 and other.left is not None and other.left.tolist() == [60.0, 50.0]
