"""Numbers on the command line: each within what edgevit takes in, and none of them infinite or no number at all."""

from __future__ import annotations

import math
from typing import Any

import click

from edgevit.util import limits


class Number(click.FloatRange):
    """A number within a range; of itself click lets `nan` through, which no comparison holds back."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, if it is one."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


THREADS = click.IntRange(1, limits.THREADS.value)
RUNS = click.IntRange(1, limits.RUNS.value)
SEED = click.IntRange(0, limits.SEED.value)
SECONDS = click.IntRange(1, limits.SECONDS.value)
