"""Values on the command line: numbers within what edgevit takes in, none of them infinite, and names of a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import click

from edgevit.util import limits


class Number(click.FloatRange):
    """A number within a range; of itself click lets `nan` through, which no comparison holds back."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, if it is one."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


class Listed(click.ParamType):  # type: ignore[type-arg]
    """One of the names that a function returns; it is called when they are needed, as a list may take long to make."""

    name = "name"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, if it is one of them."""
        return str(click.Choice(list(self._names())).convert(value, param, ctx))

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the names, as help shows them."""
        return f"[{'|'.join(self._names())}]"


THREADS = click.IntRange(1, limits.THREADS.value)
RUNS = click.IntRange(1, limits.RUNS.value)
SEED = click.IntRange(0, limits.SEED.value)
SECONDS = click.IntRange(1, limits.SECONDS.value)
