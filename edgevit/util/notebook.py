"""Let a value show itself in a notebook, though what draws it lies on a higher level (`edgevit/report/notebook.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[[Any], str])
_DRAWN_BY: dict[type, Callable[[Any], str]] = {}


class Shown:
    """A value that a notebook shows as HTML, once a function was registered with `draws`; before that as text."""

    def _repr_html_(self) -> str | None:
        draw = _DRAWN_BY.get(type(self))
        return None if draw is None else draw(self)


def draws(kind: type[Shown]) -> Callable[[F], F]:
    """Return register the decorated function, value to HTML, as what draws values of `kind`."""

    def register(draw: F) -> F:
        _DRAWN_BY[kind] = draw
        return draw

    return register
