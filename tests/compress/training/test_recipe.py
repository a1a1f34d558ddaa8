"""Recipes: what is impossible is named, all of it at once, and what is written is what is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.compress.training.recipe import TrainRecipe, check, load_recipe, to_toml
from edgevit.errors import TrainingError


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"teacher": 1.5}, "teacher: got 1.5, allowed: 0 to 1"),
        ({"tokens": -0.1}, "tokens: got -0.1, allowed: 0 to 1"),
        ({"tokens": 0.5, "teacher": 0.0}, "tokens: got 0.5, allowed without a teacher (teacher is 0): 0"),
        ({"batch": 0}, "batch: got 0, allowed: 1 or more"),
        ({"batch": 10, "accumulate": 4}, "batch: got 10, allowed: a multiple of accumulate (4)"),
        ({"temperature": 0.0}, "temperature: got 0, allowed: above 0"),
        ({"clip": float("nan")}, "clip: got nan, allowed: above 0"),
        ({"epochs_joint": -1}, "epochs_joint: got -1, allowed: 0 or more"),
        ({"epochs_joint": 10**9}, "epochs_joint: got 1000000000, allowed: at most 100000"),
        ({"views": 10**9}, "views: got 1000000000, allowed: at most 100000"),
        ({"batch": 10**12}, "batch: got 1000000000000, allowed: at most 1e+06"),
        ({"workers": 10**6}, "workers: got 1000000, allowed: at most 1024"),
        ({"seed": 2**63}, "seed: got 9223372036854775808, allowed: at most 9.22337e+18"),
        ({"threshold_images": 10**18}, "threshold_images: got 1000000000000000000, allowed: at most 1e+07"),
        ({"rate_joint": 1e308}, "rate_joint: got 1e+308, allowed: at most 1e+30"),
        ({"stiffness": float("nan")}, "stiffness: got nan, allowed: 0 or more"),
        ({"weight_decay": -1.0}, "weight_decay: got -1.0, allowed: 0 or more"),
        ({"gate_bias": -1e300}, "gate_bias: got -1e+300, allowed: at least -1000"),
    ],
)
def test_what_is_impossible_is_named(changed: dict[str, Any], said: str) -> None:
    assert check(replace(TrainRecipe(), **changed)) == [said]


def test_the_default_is_possible_and_faults_are_told_at_once(tmp_path: Path) -> None:
    assert not check(TrainRecipe())
    path = tmp_path / "recipe.toml"
    path.write_text("teacher = 2\nseed = -1\n")
    with pytest.raises(TrainingError, match="(?s)teacher: got 2.*seed: got -1"):
        load_recipe(path)


@given(
    epochs=st.integers(0, 1000),
    share=st.floats(0, 1),
    rate=st.floats(1e-9, 1e3),
    groups=st.sampled_from(["batch", "random 1 64", 'quotes " and \\ in it']),
)
def test_what_is_written_is_read(
    epochs: int, share: float, rate: float, groups: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = replace(TrainRecipe(), epochs_recover=epochs, tokens=share, ema=share, rate_joint=rate, groups=groups)
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(to_toml(recipe))
    assert load_recipe(path) == recipe
