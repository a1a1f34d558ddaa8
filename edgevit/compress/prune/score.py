"""What removing units of a branch costs, and the table of methods that measure it without training.

A method is a module with a function `score` (a `Score`): it looks at unlabelled images, and the plan is made from what
it returns, whatever it is measured by. Training measures importance as it goes (`prune.control`) and returns the same.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgevit.errors import BudgetError
from edgevit.program.program import Program

if TYPE_CHECKING:
    from edgevit.compress.prune.observe import Statistics

METHODS = {"divergence": "edgevit.compress.prune.divergence"}
FRACTIONS = (0.875, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True, kw_only=True)
class BranchScore:
    """What reducing one branch costs.

    Attributes:
        name: the branch.
        order: its units (as in `BranchSpec.kept`) from the first to remove to the last.
        units: how many units each measured level keeps, decreasing from all to 0.
        loss: mean KL divergence (nats per image) from the unreduced model at each level; 0 at the first.
    """

    name: str
    order: tuple[int, ...]
    units: tuple[int, ...]
    loss: tuple[float, ...]


class Score(Protocol):
    """Scores every branch of a model, from uint8 images `[n, height, width, 3]` and what `observe.collect` returned."""

    def __call__(self, program: Program, images: np.ndarray, statistics: Statistics, /) -> tuple[BranchScore, ...]: ...


def score_method(name: str) -> Score:
    """Return the function that scores the branches of a Program by the method `name`.

    Raises:
        BudgetError: there is no such method.
    """
    if name not in METHODS:
        raise BudgetError(f"there is no pruning score {name!r}; allowed: {', '.join(sorted(METHODS))}")
    found: Score = importlib.import_module(METHODS[name]).score
    return found


def measured_levels(units: int) -> tuple[int, ...]:
    """Return the numbers of kept units that are measured, from all to none; the plan interpolates between them."""
    step = 16 if units >= 128 else 1
    kept = {units, *(round(units * f / step) * step for f in FRACTIONS)} if units > 4 else set(range(units + 1))
    return tuple(sorted(kept, reverse=True))
