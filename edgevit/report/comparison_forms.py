"""A comparison in its forms: for a terminal, as Markdown, as a page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from edgevit import __version__
from edgevit.report import markdown
from edgevit.report.cards import Card, Note, Section, State, Tile, Tiles, section, status, table
from edgevit.report.comparison import Comparison, Row, change, summary
from edgevit.report.page import page
from edgevit.report.text import UNKNOWN, unbroken

CHANGED, SAME, MADE, LIMITS = (
    "What changed",
    "What did not change, or is not known of all",
    "Differences in how they were made",
    "Limits",
)
VERDICTS = {True: "crossed", False: "kept", None: "not known"}
_STATES: dict[str, State] = {"crossed": "failed", "kept": "met", "not known": "unknown"}
ALIKE = "They were made the same way."
UNLIKE = "*"  # behind a value that is not to be compared with the first; why is said below


def show(comparison: Comparison, console: Console) -> None:
    """Print what changed first, then what did not, how the builds were made, and the limits."""
    console.print(Text(summary(comparison), "bold"))
    for title, head, rows in _tables(comparison):
        grid = Grid(box=None, padding=(0, 2, 0, 0), title=Text(f"\n{title}"), title_justify="left")
        for index, name in enumerate(head):
            grid.add_column(
                Text(name), justify="right" if index and title in (CHANGED, SAME) else "left", overflow="fold"
            )
        for row in rows:
            grid.add_row(*map(Text, row))
        console.print(grid)
    for note in _notes(comparison):
        console.print(Text(note), highlight=False)


def as_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = [f"**{markdown.text(summary(comparison))}**"]
    for title, head, rows in _tables(comparison):
        numbers = range(1, len(head)) if title in (CHANGED, SAME) else ()
        shown = markdown.table(head, rows, numbers)
        if title in (SAME, MADE):
            parts.append(f"<details><summary>{title}</summary>\n\n{shown}\n\n</details>")
        else:
            parts.append(f"### {title}\n\n{shown}")
    parts += [f"- {markdown.text(note)}" for note in _notes(comparison)]
    return "\n\n".join(parts) + "\n"


def render(comparison: Comparison) -> str:
    """Return the comparison as one self-contained page."""
    names = [column.name for column in comparison.columns]
    cards: list[Card] = [Tiles(tiles=tuple(_tiles(comparison)))]
    for title, head, rows in _tables(comparison):
        numbers = range(1, len(head)) if title in (CHANGED, SAME) else ()
        cells = [[row[0], *map(unbroken, row[1:])] for row in rows] if numbers else rows
        if title == LIMITS:
            cells = [[*row[:-1], status(_STATES[row[-1]], row[-1])] for row in rows]
        cards.append(section(title, _intro(title), table(head, cells, numbers=numbers, class_="wrap")))
    notes = list(_notes(comparison))
    if notes:
        cards.append(Section(title="Warnings", intro="", parts=(Note(lines=notes, kind="list"),)))
    title = f"{', '.join(names[1:])} against {names[0]}"
    return page(title, f"{summary(comparison)}.", cards, made_by=__version__)


def _intro(title: str) -> str:
    told = {
        CHANGED: "The largest change comes first. Less is better of times, memory, size and losses.",
        MADE: "Target, recipe, tools and weights, as far as they are not the same.",
        LIMITS: "Limits from --fail-if.",
    }
    return told.get(title, "")


def _tiles(comparison: Comparison) -> Iterator[Tile]:
    """Yield the changes that matter most, of the last column against the first; both are named where there are more."""
    index = len(comparison.columns) - 1
    names = (comparison.columns[0].name, comparison.columns[index].name)
    of = [f"{name} " for name in names] if index > 1 else ["", ""]
    rows = {row.name: row for row in comparison.rows}
    for name in ("latency", "process", "memory", "size", "top1", "agreement"):
        row = rows.get(name)
        told = change(row, index) if row else ""
        if row is None or not told:
            continue
        better = (row.changes[index] or 0.0) < 0 if row.less_is_better else (row.changes[index] or 0.0) > 0
        yield Tile(
            name=row.title[0].upper() + row.title[1:],
            value=told,
            note=f"{of[0]}{row.shown[0]} → {of[1]}{row.shown[index]}",
            state="" if told == "same" else "met" if better else "failed",
        )


def _tables(comparison: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, head and cells of each table there is."""
    names = [column.name for column in comparison.columns]
    if comparison.verdicts:
        rows = [[v.limit, v.column, v.value, VERDICTS[v.crossed]] for v in comparison.verdicts]
        yield LIMITS, ["limit", "of", "is", ""], rows
    changed = [row for row in comparison.rows if _told(row)]
    if changed:
        yield CHANGED, ["", *names], [[row.title, *_cells(row)] for row in changed]
    same = [row for row in comparison.rows if not _told(row)]
    if same:
        yield SAME, ["", *names], [[row.title, *row.shown] for row in same]
    facts = [("model", "model"), ("target", "target"), ("runtime", "runtime"), ("device", "device")]
    about = [[title, *(getattr(column, key) or UNKNOWN for column in comparison.columns)] for title, key in facts]
    made = [[row.what, *row.values] for row in comparison.made if row.what not in ("target", "runtime", "model")]
    rows = [row for row in about if len(set(row[1:])) > 1] + made
    if rows:
        yield MADE, ["", *names], rows


def _told(row: Row) -> bool:
    """Return whether a figure changed in a column, or cannot be compared there."""
    return any(why or change(row, index) not in ("", "same") for index, why in enumerate(row.unlike))


def _cells(row: Row) -> Iterator[str]:
    for index, value in enumerate(row.shown):
        how = change(row, index) if index else ""
        yield f"{value} {UNLIKE}" if row.unlike[index] else f"{value} ({how})" if how else value


def _notes(comparison: Comparison) -> Iterator[str]:
    """Yield why limits could not be decided, why figures are not to be compared, and what spoils them."""
    yield from (f"{verdict.limit}: {verdict.why}" for verdict in comparison.undecided)
    for index, column in enumerate(comparison.columns):
        reasons: dict[str, list[str]] = {}
        for row in comparison.rows:
            if row.unlike[index]:
                reasons.setdefault(row.unlike[index], []).append(row.title)
        for why, titles in reasons.items():
            first = comparison.columns[0].name
            yield f"{UNLIKE} {column.name}: {', '.join(titles)}: not to be compared with {first}'s ({why})"
        yield from (f"{column.name}: warning: {doubt}" for doubt in column.doubts)
    if all(column.target for column in comparison.columns) and not comparison.made:
        yield ALIKE
