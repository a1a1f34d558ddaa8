"""Numbers as people read them, with their unit; what is not known is a dash."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgevit.schema.manifest import AccuracyRow
from edgevit.schema.measurement import Latency
from edgevit.schema.target import Target

UNKNOWN = "–"
PATH_NAMES = {"all_open": "all open", "all_skipped": "all skipped", "real": "real images"}
# Where no branch has a gate, and effort moves how many tokens are merged alone.
TOKEN_PATH_NAMES = {"all_open": "most tokens", "all_skipped": "fewest tokens", "real": "real images"}
METRIC_NAMES = {"top1": "top-1", "top5": "top-5", "agreement": "agreement with float"}
KEYS = {
    "ram_mb": "budget of RAM, MB",
    "flash_mb": "budget of flash, MB",
    "latency_ms": "budget of time, ms",
    "drop_points": "budget of loss, points",
    "tune_s": "search for tiles, s",
    "held_out": "images held out",
    "arch": "architecture",
    "requires_flags": "CPU flags",
    "cpu": "compiled for",
}
CLAIM_NAMES = {
    "parity": "same function",
    "skip": "skipped is skipped",
    "coverage": "int8 is int8",
    "bound": "it fits",
    "accuracy": "as accurate",
}


def size(value: float | None) -> str:
    """Return bytes in decimal units: 5.42 MB."""
    return UNKNOWN if value is None else _scaled(value, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def count(value: float | None) -> str:
    """Return counts such as MACs and parameters: 1.08 G."""
    return UNKNOWN if value is None else _scaled(value, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "")


def ms(value: float | None) -> str:
    """Return milliseconds with three significant digits; below one, microseconds."""
    if value is None:
        return UNKNOWN
    return f"{_digits(value)} ms" if value >= 1 else f"{_digits(1000 * value)} µs"


def percent(value: float | None, digits: int = 1) -> str:
    """Express a fraction as a percentage."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """Express a difference of two fractions in points, with its sign."""
    return f"{100 * value:+.1f} points"


def path(name: str, gated: bool) -> str:
    """Return what a path is called in a build with gates, or with numbers of tokens alone."""
    return (PATH_NAMES if gated else TOKEN_PATH_NAMES)[name]


def key(name: str) -> str:
    """Return what a key of a target or a recipe is, in words and with its unit."""
    return KEYS.get(name, name.replace("_", " "))


def metric(row: AccuracyRow) -> str:
    """Return what a row measures; of an agreement also with which model."""
    if row.metric == "agreement" and row.against == "original":
        return "agreement with original"
    return METRIC_NAMES[row.metric]


def interval(row: AccuracyRow) -> str:
    """Return a measured fraction with its interval and n: 74.4 % [71.6, 77.0], n = 1000."""
    return f"{percent(row.value)} [{100 * row.low:.1f}, {100 * row.high:.1f}], n = {row.images}"


def percentile(value: float | None) -> str:
    """Return a percentile, or why there is none."""
    return "too few runs" if value is None else ms(value)


def unbroken(value: str) -> str:
    """Return a figure whose unit stays on its line; what is in brackets may go below it."""
    return value.replace(" ", "\u00a0").replace("\u00a0(", " (")


def int8_choice(target: Target) -> list[tuple[str, str]]:
    """Return whether the target computes in int8 or float, and why, if it says so: (name, reason) or nothing.

    What a reason refers to lies in edgevit's sources, not beside the page.
    """
    reason = re.sub(r"(reports/reference/[\w-]+\.md)", r"\1 in edgevit's sources", target.reasons.get("int8", ""))
    return [("int8 or float", reason)] if reason else []


def tokens(left: Sequence[int]) -> str:
    """Return the patch tokens left after every point where they merge, of one image: 158, 119, 80, 48."""
    return ", ".join(map(str, left))


def cpus(count: float) -> str:
    """Return a number of CPUs, one in the singular: 0.8 CPUs, 1 CPU."""
    return f"{count:g} CPU{'s' * (f'{count:g}' != '1')}"


def spread(latency: Latency) -> str:
    """Return the median with the whole range."""
    return f"{ms(latency.median_ms)} ({ms(latency.min_ms)} to {ms(latency.max_ms)})"


def _scaled(value: float, units: tuple[tuple[str, float], ...], base: str) -> str:
    for unit, factor in units:
        if abs(value) >= factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{value:g} {base}".strip()


def _digits(value: float) -> str:
    """Return three significant digits, none lost before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
