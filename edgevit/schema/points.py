"""Operating points: efforts that a build was measured at; five have a name that `runner/run.py` and Python take.

An effort is one number, and how much a step of it costs differs from model to model; a name says what it is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgevit.errors import OperatingPointError
from edgevit.schema.claims import Fraction

# From the cheapest; `balanced` is effort 0, as calibrated, and `full` runs every branch.
PointName = Literal["fastest", "fast", "balanced", "accurate", "full"]
NAMES: tuple[PointName, ...] = ("fastest", "fast", "balanced", "accurate", "full")
# An effort this far from 0 is beyond every threshold that a model can have, and so as good as infinity.
ENDLESS = 1e9
WHY_NONE = ", because it runs the same for every image; omit the effort"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """One effort and what the build was measured to cost and to answer there, on `images` images.

    Attributes:
        effort: the value of the input `effort`.
        name: what stands for it (None: a point that only draws the curve).
        macs: multiply-accumulates of an image, the mean over the images.
        worst_macs: of the image that took most.
        branches: how many branches ran, the mean.
        images: how many images it was measured on.
        agreement: with the model `against` (None: it does not decide between classes).
        top1: with labels only.
        against: the original model in float, or where that is not known on the images the float model of the build.
    """

    effort: float
    name: PointName | None = None
    macs: float
    worst_macs: int
    branches: float
    images: int
    agreement: Fraction | None = None
    top1: Fraction | None = None
    against: Literal["original", "float"] = "float"


def effort_text(effort: float) -> str:
    """Return an effort as people read it; as JSON knows no infinity, a large number stands for it there."""
    return f"{effort:g}" if abs(effort) < ENDLESS else "infinity" if effort > 0 else "-infinity"


def effort_of(asked: str | float, points: Sequence[OperatingPoint], subject: str) -> float:
    """Return the effort that was asked for, as a number or by the name of an operating point.

    Args:
        asked: a number, or a name.
        points: of the bundle.
        subject: the bundle, for messages.

    Raises:
        OperatingPointError: it is no number, and no point of the bundle has that name.
    """
    try:
        effort = float(asked)
    except ValueError:
        named = {point.name: point.effort for point in points if point.name is not None}
        for name, known in named.items():
            if name == asked:
                return known
        offered = f"it has {', '.join(named)}; or give a number" if named else f"it has none{WHY_NONE}"
        raise OperatingPointError(f"{subject} has no operating point {asked!r}: {offered}") from None
    if math.isnan(effort):
        raise OperatingPointError(f"effort must be a number or the name of an operating point, got {asked!r}")
    return effort
