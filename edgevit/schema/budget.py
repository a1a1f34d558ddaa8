"""Budgets of a device, as its target or `--budget` states them: met, not met, or not known, with what was held.

What is not known is said, never guessed: a time is that of a device that was measured, and memory of a whole process
only a measurement tells; what is proven of it can only show that a budget is not met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgevit.schema.claims import AccuracyFigures, figures_of
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import Measurement, not_the_device
from edgevit.schema.target import refusal
from edgevit.util.strict_json import shown

BudgetKey = Literal["ram_mb", "flash_mb", "latency_ms", "drop_points"]
BUDGETS: dict[BudgetKey, str] = {
    "ram_mb": "memory of the process in MB",
    "flash_mb": "files on the device in MB",
    "latency_ms": "time of an image in ms",
    "drop_points": "points lost against the original",
}
# As the command line has them.
SHORT: dict[str, BudgetKey] = {
    "ram": "ram_mb",
    "flash": "flash_mb",
    "latency": "latency_ms",
    "drop": "drop_points",
}
# What a device has of a bundle beside the model: the program that loads it. `lib/` is the same code again, to link
# into a program that takes the place of this one.
ON_DEVICE = "runner/native/"

# What is needed, whether that is all of it, and what it is.
Found = tuple[float | None, bool, str]


@dataclass(frozen=True, kw_only=True)
class BudgetCheck:
    """One budget: the most that is allowed, what is needed (None: not known), and whether it is met (None: unknown).

    `what` says what was held against it, or why nothing could be.
    """

    key: BudgetKey
    limit: float
    value: float | None
    held: bool | None
    what: str


def read_budget(text: str) -> dict[str, float]:
    """Return the budgets of a text such as `ram=8,flash=6,latency=30,drop=1`, by the keys of a target.

    Raises:
        TargetError: something in it is no budget, no number, or given twice; says all that is wrong.
    """
    found: dict[str, float] = {}
    faults = []
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        key = SHORT.get(name, name)
        if key not in BUDGETS:
            faults.append(f"got {shown(part)}, allowed: {', '.join(f'{name}=NUMBER' for name in SHORT)}")
        elif key in found:
            faults.append(f"{name} is given twice")
        elif not (number := _number(value)) > 0 and not (key == "drop_points" and number == 0):
            faults.append(f"{name}: got {shown(value)}, allowed: a number above 0, of {BUDGETS[key]}")
        else:
            found[key] = number
    if faults:
        raise refusal("the budget", faults)
    return found


def _number(text: str) -> float:
    """Return a finite number, or nan."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def check_budgets(manifest: Manifest, measurement: Measurement | None = None) -> tuple[BudgetCheck, ...]:
    """Hold a build, and what a device measured of it, against the budgets of its target; none: nothing was asked."""
    checks: dict[BudgetKey, Callable[[Manifest, Measurement | None], Found]] = {
        "ram_mb": _ram,
        "flash_mb": _flash,
        "latency_ms": _latency,
        "drop_points": _drop,
    }
    asked = [(key, getattr(manifest.target, key)) for key in BUDGETS]
    return tuple(_held(key, limit, *checks[key](manifest, measurement)) for key, limit in asked if limit is not None)


def _held(key: BudgetKey, limit: float, value: float | None, whole: bool, what: str) -> BudgetCheck:
    """Return the check; a value that is not the whole can only show that a budget is not met."""
    held = None if value is None or (value <= limit and not whole) else value <= limit
    return BudgetCheck(key=key, limit=limit, value=value, held=held, what=what)


def _ram(manifest: Manifest, measurement: Measurement | None) -> Found:
    if measurement is not None and measurement.process is not None:
        other = not_the_device(manifest.target, measurement.environment)
        return measurement.process.peak_bytes / 1e6, not other, f"peak of a process{_and(other)}"
    proven = manifest.bound.bound_bytes / 1e6
    return proven, False, "what is proven of the model alone; `edgevit profile` measures the process"


def _flash(manifest: Manifest, measurement: Measurement | None) -> Found:
    own = sum(file.bytes for file in manifest.files if file.path.startswith(ON_DEVICE))
    more = ", and the program that loads them" if own else f", without {manifest.backend}, which the device has"
    return (manifest.sizes.model_bytes + own) / 1e6, True, f"the files that the device loads{more}"


def _latency(manifest: Manifest, measurement: Measurement | None) -> Found:
    path = None if measurement is None else next((p for p in measurement.paths if p.path == "real"), None)
    if measurement is None or path is None:
        return None, True, "no device was measured; `edgevit profile` does"
    other = not_the_device(manifest.target, measurement.environment)
    if path.wall.p95_ms is None:
        return path.wall.max_ms, not other, f"the slowest of {path.wall.runs} runs on real images{_and(other)}"
    return path.wall.p95_ms, not other, f"95th percentile of {path.wall.runs} runs on real images{_and(other)}"


def _drop(manifest: Manifest, measurement: Measurement | None) -> Found:
    figures = figures_of(manifest.claims, AccuracyFigures)
    against = None if figures is None else figures.against_original
    if against is None:
        return None, True, "the original is not known on these images"
    of = "agreement" if against.drop is None else "top-1"
    return 100 * against.lost, True, f"of {of} on {against.agreement.images} images"


def _and(other: str) -> str:
    return f", {other}" if other else ""
