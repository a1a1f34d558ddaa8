"""Limits of a comparison, as `--fail-if` takes them: `latency>+5%`, `size>8MB`, `top1<-1pt`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgevit.errors import ComparisonError
from edgevit.report.figures import FIGURES, NAMES, Unit

GRAMMAR = re.compile(
    r"\s*([A-Za-z0-9_]{1,40})\s*(<=|>=|<|>)\s*([+-]?)\s*(\d{1,12}(?:\.\d{1,9})?)\s*([A-Za-zµ%]{0,6})\s*"
)
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
FACTORS: dict[Unit, dict[str, float]] = {
    "ms": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "bytes": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "count": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "share": {"%": 1e-2, "pt": 1e-2},
}
EXAMPLES = "such as latency>+5%, latency>20ms, size>+100kB or top1<-1pt"
Kind = Literal["value", "change", "relative"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What must not be: a figure's `value`, its `change` against the first, or that as a fraction of it.

    `amount` is in ms, bytes, counts or fractions, as the figure; `text` as it was given.
    """

    text: str
    name: str
    compare: str
    kind: Kind
    amount: float

    def crossed(self, first: float, value: float) -> bool:
        """Return whether a value, beside the first one, is what must not be."""
        seen = value if self.kind == "value" else value - first
        if self.kind == "relative":
            seen = seen / first if first else (0.0 if not seen else float("inf") * seen)
        return COMPARE[self.compare](seen, self.amount)


def read_limit(text: str) -> Limit:
    """Read a limit: a figure's name, an operator, and an amount with its unit; with a sign it is a change.

    Raises:
        ComparisonError: it is none; the message says what is allowed.
    """
    found = GRAMMAR.fullmatch(text)
    if found is None:
        raise ComparisonError(f"{text!r} is not a limit; give a figure, <, <=, > or >=, and an amount, {EXAMPLES}")
    name, compare, sign, digits, unit = found.groups()
    if name not in NAMES:
        near = ", ".join(difflib.get_close_matches(name, NAMES, n=2))
        raise ComparisonError(
            f"{text!r}: there is no figure {name!r}{f', nearest: {near}' if near else ''}; allowed: {', '.join(NAMES)}"
        )
    figure = next(each for each in FIGURES if each.name == name)
    amount = float(digits) * (-1 if sign == "-" else 1)
    if unit == "%" and figure.unit != "share":
        if not sign:
            raise ComparisonError(f"{text!r}: a share of what? With a sign it is a change: {name}{compare}+{digits}%")
        return Limit(text=text.strip(), name=name, compare=compare, kind="relative", amount=amount / 100)
    if figure.unit == "share" and unit != ("pt" if sign else "%"):
        raise ComparisonError(
            f"{text!r}: {name} is a share itself: give a value in % ({name}{compare}70%), or a change in points with "
            f"its sign ({name}{compare}-1pt)"
        )
    factors = FACTORS[figure.unit]
    if unit not in factors:
        units = ", ".join(each or "none" for each in factors)
        raise ComparisonError(f"{text!r}: {unit!r} is not a unit of {name}; allowed: {units}, or % with a sign")
    kind: Kind = "change" if sign else "value"
    return Limit(text=text.strip(), name=name, compare=compare, kind=kind, amount=amount * factors[unit])
