"""The index of a folder of pages: a row per build, with what one chooses by, and a link to its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevit import __version__
from edgevit.report.cards import linked, section, table
from edgevit.report.figures import FIGURES, OWN_FLOAT, Figure, figures, shown
from edgevit.report.page import page
from edgevit.report.text import UNKNOWN, unbroken
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import Measurement, not_the_device

SHOWN = ("latency", "process", "memory", "size", "top1", "agreement", "macs")
WORDS = {
    "latency": "time",
    "process": "process",
    "memory": "bound",
    "top1": "top-1",
    "agreement": "agrees",
    "macs": "MACs",
}
NUMBERS = tuple(figure.name for figure in FIGURES if figure.name in SHOWN)
HEAD = ("build", "model", "target", "device", *(WORDS.get(name, name) for name in NUMBERS))
AGREES = (
    "share of the images on which it names the class that the original names; (float): that the float model names that "
    "it was quantized from"
)
TIPS = ("", "", "", "", *(AGREES if f.name == "agreement" else f.title for f in FIGURES if f.name in SHOWN))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A build with its page: the file's name and what was measured of it."""

    name: str
    file: str
    manifest: Manifest
    measurement: Measurement | None


def render(entries: Sequence[Entry], comparison: str | None) -> str:
    """Return the index as a page; `comparison` is the file of the page that sets them side by side."""
    rows = [_row(entry) for entry in entries]
    models = sorted({entry.manifest.recipe.model for entry in entries})
    count = f"{len(entries)} build{'s' * (len(entries) != 1)}"
    lead = f"Of {', '.join(models)}. A column's name sorts by it; on a phone not all of them are shown."
    cards = [
        section(
            "Builds",
            "",
            table(HEAD, rows, numbers=range(4, len(HEAD)), less=_less(rows), tips=TIPS, class_="wrap index"),
        )
    ]
    if comparison is not None:
        cards.append(section("Side by side", linked(comparison, "What differs between them, the largest change first")))
    return page(count, lead, cards, made_by=__version__)


def _less(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the columns that a phone goes without; of top-1 and agreement it shows what is known."""
    labelled = any(row[HEAD.index("top-1")] != UNKNOWN for row in rows)
    kept = {"build", "time", "size", "top-1" if labelled else "agrees"}
    return [index for index, name in enumerate(HEAD) if name not in kept]


def _cell(figure: Figure) -> str:
    with_float = figure.conditions.get("agreement") == OWN_FLOAT
    return unbroken(f"{shown(figure, figure.value)}{' (float)' * with_float}")


def _row(entry: Entry) -> list[str]:
    manifest, measurement = entry.manifest, entry.measurement
    machine = measurement.environment if measurement is not None else None
    device = machine.cpu if machine is not None else UNKNOWN
    if machine is not None and not_the_device(manifest.target, machine):
        device += ", not the device it was built for"
    cells = [_cell(each) for each in figures(manifest, measurement) if each.name in SHOWN]
    return [linked(entry.file, entry.name), manifest.recipe.model, manifest.target.name, device, *cells]
