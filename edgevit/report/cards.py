"""What a page is made of, as data; `page.html.jinja` lays it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from markupsafe import Markup

State = Literal["", "met", "failed", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are text, or markup that is safe already.

    `numbers` are the columns set to the right, `less` those left out on a phone, `tips` what a head's word means.
    `name` is that of a file with its figures.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    less: Sequence[int] = ()
    tips: Sequence[str] = ()
    class_: str = ""
    row_classes: Sequence[str] = ()
    name: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    kind: Literal["pairs"] = "pairs"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An inline SVG, wide and for a phone, with its figures as a table.

    `name` is that of the files it is saved as.
    """

    name: str
    wide: Markup
    narrow: Markup
    data: Table
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True, kw_only=True)
class Note:
    """Lines between figures; `unmeasured`: instead of figures, with the command that measures them."""

    lines: Sequence[str]
    kind: Literal["lead", "list", "unmeasured", "empty"]


@dataclass(frozen=True, kw_only=True)
class Thumb:
    """A small picture as a data URI, and what stands below it."""

    uri: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Thumbs:
    """Small pictures in a row."""

    title: str
    pictures: Sequence[Thumb]
    kind: Literal["thumbs"] = "thumbs"


Part = Table | Pairs | Picture | Note | Thumbs


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the first screen, what it is, and what stands beside it; `whole`: a row of its own."""

    name: str
    value: str
    note: str
    state: State = ""
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Figures of the first screen."""

    tiles: tuple[Tile, ...]
    kind: Literal["tiles"] = "tiles"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A card of the page."""

    title: str
    intro: str
    parts: tuple[Part, ...]
    class_: str = ""
    kind: Literal["section"] = "section"


Card = Tiles | Section
# The states of a budget and of a claim, as a reader sees them.
STATES: dict[bool | None, tuple[State, str]] = {
    True: ("met", "✓ met"),
    False: ("failed", "✗ not met"),
    None: ("unknown", "? unknown"),
}


def section(title: str, intro: str, *parts: Part, class_: str = "") -> Section:
    return Section(title=title, intro=intro, parts=parts, class_=class_)


def picture(name: str, wide: str, narrow: str, data: Table) -> Picture:
    """Return a picture; `svg.py` escapes what it is given."""
    return Picture(name=name, wide=Markup(wide), narrow=Markup(narrow), data=data)


def unmeasured(text: str) -> Note:
    return Note(lines=(text,), kind="unmeasured")


def pairs(rows: Iterable[tuple[str, str]]) -> Pairs:
    return Pairs(rows=tuple(rows))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], **how: Any) -> Table:
    return Table(head=head, rows=tuple(rows), **how)


def status(state: State, words: str) -> Markup:
    """Return a coloured mark."""
    return Markup('<span class="status {}">{}</span>').format(state, words)


def linked(address: str, words: str) -> Markup:
    """Return a link to another page of the folder, a file's name as it is."""
    return Markup('<a href="{}">{}</a>').format(quote(address), words)
