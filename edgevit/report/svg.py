"""A few lines of SVG: elements as strings, axes with round numbers. Colours and fonts come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


def element(tag: str, content: str = "", **attributes: str | float) -> str:
    """Return one element; `class_` and `stroke_width` become `class` and `stroke-width`."""
    named = (f'{key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    opening = " ".join([tag, *named])
    return f"<{opening}>{content}</{tag}>" if content else f"<{opening}/>"


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str = "") -> str:
    return element("text", escape(content), x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, *, title: str = "", radius: float = 0) -> str:
    """Return a rectangle, with a tooltip if `title` is given; a bar of no width is not drawn."""
    if width <= 0 or height <= 0:
        return ""
    content = element("title", escape(title)) if title else ""
    return element("rect", content, x=x, y=y, width=width, height=height, rx=radius, class_=class_)


def dot(x: float, y: float, radius: float, class_: str, title: str) -> str:
    """Return a circle with a tooltip."""
    return element("circle", element("title", escape(title)), cx=x, cy=y, r=radius, class_=class_)


def picture(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """Return the whole drawing; `label` is what a screen reader says."""
    content = "".join((element("title", escape(label)), *parts))
    return element("svg", content, viewBox=f"0 0 {_value(width)} {_value(height)}", role="img", width=width)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values `low`..`top` to pixels `begin`..`end` (end may be the smaller: y grows downwards)."""

    top: float
    begin: float
    end: float
    low: float = 0.0

    def __call__(self, value: float) -> float:
        return self.begin + (self.end - self.begin) * (value - self.low) / (self.top - self.low)

    @property
    def ticks(self) -> tuple[float, ...]:
        step = round_step(self.top - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.top / step + 1e-9)
        return tuple(round(step * i, 9) for i in range(first, last + 1))


def round_step(length: float, about: int = 6) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that cuts a length into about so many parts."""
    raw = length / about
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def _value(value: str | float) -> str:
    """Return coordinates to a tenth of a pixel: enough to see, stable to compare."""
    return escape(value) if isinstance(value, str) else f"{round(value, 1):g}"
