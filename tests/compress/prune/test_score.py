"""The table of pruning scores: a method is one module and one entry, and the pipeline prunes by it."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from edgevit import pipeline
from edgevit.compress.budgets import Budgets
from edgevit.compress.prune.observe import Statistics
from edgevit.compress.prune.score import METHODS, BranchScore, score_method
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from tests.tiny import tiny_images, tiny_program


def by_number(program: Program, images: np.ndarray, statistics: Statistics) -> tuple[BranchScore, ...]:
    """A dummy method: the last units of every branch are worth least, and all branches are worth the same."""
    return tuple(
        BranchScore(
            name=b.name,
            order=b.kept[::-1],
            units=tuple(range(b.units, -1, -1)),
            loss=tuple(gone**2 / b.units**2 for gone in range(b.units + 1)),
        )
        for b in program.spec.branches
    )


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add the dummy to the table, as a module of its own."""
    module = ModuleType("dummy_score")
    module.score = by_number  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dummy_score", module)
    monkeypatch.setitem(METHODS, "by_number", "dummy_score")
    return "by_number"


def test_a_score_is_one_entry_and_prunes(dummy: str) -> None:
    """The plan follows the method that was named, and not the default one."""
    program = tiny_program(depth=2, heads=4, hidden=64)
    images, budgets = tiny_images(program.spec, 8), Budgets(static=0.7, expected=0.7)
    small = pipeline.compress(program, images, budgets, score=dummy)
    assert total_macs(small.spec) <= 0.7 * total_macs(program.spec)
    assert all(b.kept == tuple(range(b.units)) for b in small.spec.branches)
    assert sum(0 < b.units < b.units_total for b in small.spec.branches) >= 3
    usual = pipeline.compress(program, images, budgets)
    assert not all(b.kept == tuple(range(b.units)) for b in usual.spec.branches)


def test_every_method_of_the_table_is_there() -> None:
    assert all(callable(score_method(name)) for name in METHODS)


def test_an_unknown_method_is_refused_with_those_there_are(dummy: str) -> None:
    with pytest.raises(BudgetError, match="no pruning score 'best'; allowed: by_number, divergence"):
        score_method("best")
