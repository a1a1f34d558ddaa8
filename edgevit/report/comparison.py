"""Builds and devices side by side, of one model or of several: what changed first, and whether limits are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.errors import ComparisonError
from edgevit.report import text as say
from edgevit.report.differences import Difference, differences
from edgevit.report.figures import FIGURES, Figure, figures, shown
from edgevit.report.limits import Limit
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import Measurement, not_the_device

COMPARISON_SCHEMA = 1
# How a figure becomes known, by its name.
REMEDY = "give a measurement of it (edgevit profile)"
REMEDIES = {
    "p95": f"{REMEDY}, of more runs if it has too few for a percentile",
    "top1": "build it with --eval and labelled images",
    "lost": "build it with --eval and labelled images, and with --original where it was compressed",
    "agreement": "give its bundle, built where its model can run",
    **dict.fromkeys(("memory", "size", "macs", "macs_all_open", "parameters"), "give its bundle"),
}
UNIT_WORDS = {"ms": "ms", "bytes": "bytes", "count": "", "share": "fraction"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one column is of: a bundle, a measurement, or a bundle as a device measured it."""

    name: str
    manifest: Manifest | None = None
    measurement: Measurement | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """What stands above the figures; empty: not known. `doubts` spoil what was measured."""

    name: str
    model: str
    target: str
    runtime: str
    device: str
    doubts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure in every column, and how it changed against the first one.

    `changes` are fractions of the first value; of shares differences of fractions (None: not known, or not to be
    compared). `unlike` says what keeps a value from being compared with the first ("": nothing).
    """

    name: str
    title: str
    unit: str
    less_is_better: bool
    values: tuple[float | None, ...]
    shown: tuple[str, ...]
    changes: tuple[float | None, ...]
    unlike: tuple[str, ...]

    @property
    def largest(self) -> float:
        """Return the largest change, whatever its sign."""
        return max((abs(change) for change in self.changes if change is not None), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A limit in one column: whether it was crossed (None: nobody can tell, and `why` says so)."""

    limit: str
    column: str
    value: str
    crossed: bool | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The columns, the figures from the one that changed most, how the builds were made, and the limits.

    `made` is what differs in how they were made: target, recipe, tools, weights (of the columns that are bundles).
    """

    schema: int = COMPARISON_SCHEMA
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    made: tuple[Difference, ...]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def crossed(self) -> tuple[Verdict, ...]:
        """Return the limits that were crossed."""
        return tuple(verdict for verdict in self.verdicts if verdict.crossed)

    @property
    def undecided(self) -> tuple[Verdict, ...]:
        """Return the limits on what is not known, or cannot be compared."""
        return tuple(verdict for verdict in self.verdicts if verdict.crossed is None)


def compare(subjects: Sequence[Subject], limits: Sequence[Limit] = ()) -> Comparison:
    """Set subjects side by side; the first is what the others are held against.

    Raises:
        ComparisonError: fewer than two.
    """
    if len(subjects) < 2:
        raise ComparisonError("a comparison takes at least two builds or measurements; give another one")
    found = [figures(subject.manifest, subject.measurement) for subject in subjects]
    rows = [_row([one[index] for one in found]) for index in range(len(found[0]))]
    known = [row for row in rows if any(value is not None for value in row.values)]
    built = [subject.manifest for subject in subjects]
    every = [manifest for manifest in built if manifest is not None]
    return Comparison(
        columns=tuple(_column(subject) for subject in subjects),
        rows=tuple(sorted(known, key=lambda row: -row.largest)),
        made=differences(every, figures=False) if len(every) == len(built) else (),
        verdicts=tuple(
            _verdict(limit, row, index, subjects)
            for limit in limits
            for row in rows
            if row.name == limit.name
            for index in range(1, len(subjects))
        ),
    )


def change(row: Row, index: int) -> str:
    """Return how a figure changed, in words: -12.0 %, +0.4 points, same; nothing where it cannot be said."""
    value = row.changes[index]
    if value is None:
        return ""
    if row.unit == "fraction":
        return "same" if not round(100 * value, 1) else say.points(value)
    return "same" if not round(100 * value, 1) else f"{100 * value:+.1f} %"


def summary(comparison: Comparison) -> str:
    """Return what changed most in one line, for every column after the first."""
    first, *others = (column.name for column in comparison.columns)
    said = []
    for index, name in enumerate(others, start=1):
        parts = [(row.name.replace("_", " "), change(row, index)) for row in comparison.rows]
        told = [f"{what} {how}" for what, how in parts if how not in ("", "same")]
        said.append(f"{name} against {first}: {', '.join(told[:5]) or 'no figure changed'}")
    return "; ".join(said)


def _column(subject: Subject) -> Column:
    manifest, measurement = subject.manifest, subject.measurement
    machine = measurement.environment if measurement else None
    other = not_the_device(manifest.target, machine) if manifest and machine else ""
    return Column(
        name=subject.name,
        model=manifest.recipe.model if manifest else (measurement.bundle if measurement else ""),
        target=manifest.target.name if manifest else "",
        runtime=manifest.backend if manifest else (machine.runtime if machine else ""),
        device=f"{machine.cpu}{', emulated' if machine.emulated_by else ''}" if machine else "",
        doubts=(*((other,) if other else ()), *(measurement.warnings if measurement else ())),
    )


def _row(found: Sequence[Figure]) -> Row:
    first = found[0]
    unlike = tuple(_unlike(first, figure) for figure in found)
    titles = {figure.title for figure in found if figure.value is not None}
    return Row(
        name=first.name,
        title=titles.pop() if len(titles) == 1 else next(each.title for each in FIGURES if each.name == first.name),
        unit=UNIT_WORDS[first.unit],
        less_is_better=first.less,
        values=tuple(figure.value for figure in found),
        shown=tuple(shown(figure, figure.value) for figure in found),
        changes=tuple(None if why else _change(first, figure) for figure, why in zip(found, unlike, strict=True)),
        unlike=unlike,
    )


def _unlike(first: Figure, other: Figure) -> str:
    if first.value is None or other.value is None:
        return ""
    both = [key for key in first.conditions if key in other.conditions]
    told = [(key, first.conditions[key], other.conditions[key]) for key in both]
    return "; ".join(f"{key}: {one}, and {another}" for key, one, another in told if one != another)


def _change(first: Figure, other: Figure) -> float | None:
    if first.value is None or other.value is None:
        return None
    if first.unit == "share":
        return other.value - first.value
    return other.value / first.value - 1 if first.value else None


def _verdict(limit: Limit, row: Row, index: int, subjects: Sequence[Subject]) -> Verdict:
    """Hold one column against a limit; what is not known or cannot be compared is said, never passed."""
    name, value = subjects[index].name, row.values[index]
    shown = row.shown[index] + (f" ({change(row, index)})" if change(row, index) else "")
    held = [index] if limit.kind == "value" else [0, index]
    unknown = [subjects[each].name for each in held if row.values[each] is None]
    why = ""
    if unknown:
        why = f"the {row.title} of {unknown[0]} is not known; {REMEDIES.get(row.name, REMEDY)}"
    elif limit.kind != "value" and row.unlike[index]:
        why = (
            f"the {row.title} of {name} cannot be held against {subjects[0].name}'s, they were taken under other "
            f"conditions ({row.unlike[index]}); measure both alike"
        )
    if why or value is None:
        return Verdict(limit=limit.text, column=name, value=shown, crossed=None, why=why)
    first = row.values[0]
    return Verdict(
        limit=limit.text,
        column=name,
        value=shown,
        crossed=limit.crossed(first if first is not None else value, value),
    )
