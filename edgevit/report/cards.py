"""What the cards of the page are made of, as data; `page.html.jinja` lays it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are text, or markup that is safe already; `numbers` are the columns set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    class_: str = ""
    row_classes: Sequence[str] = ()
    kind: Literal["table"] = "table"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    kind: Literal["pairs"] = "pairs"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An inline SVG."""

    svg: Markup
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True, kw_only=True)
class Note:
    """Lines between figures; `unmeasured`: instead of figures, with the command that measures them."""

    lines: Sequence[str]
    kind: Literal["lead", "list", "unmeasured", "empty"]


Part = Table | Pairs | Picture | Note


@dataclass(frozen=True, kw_only=True)
class Section:
    """A card of the page."""

    title: str
    intro: str
    parts: tuple[Part, ...]
    class_: str = ""


def section(title: str, intro: str, *parts: Part, class_: str = "") -> Section:
    return Section(title=title, intro=intro, parts=parts, class_=class_)


def picture(svg: str) -> Picture:
    return Picture(svg=Markup(svg))  # svg.py escapes what it is given


def unmeasured(text: str) -> Note:
    return Note(lines=(text,), kind="unmeasured")


def pairs(rows: Iterable[tuple[str, str]]) -> Pairs:
    return Pairs(rows=tuple(rows))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], **how: Any) -> Table:
    return Table(head=head, rows=tuple(rows), **how)
