from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.compress.training.recipe import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "benchmarks" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_benchmarks_recipes_are_recipes(path: Path) -> None:
    assert load_recipe(path).threshold_images == 250


def test_there_are_recipes() -> None:
    assert RECIPES
