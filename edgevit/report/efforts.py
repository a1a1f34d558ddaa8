"""What a build costs and answers at each effort that it was measured at, and what that takes on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.report import text as say
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import Measurement, PointLatency
from edgevit.schema.points import effort_text

# What the columns of `rows` are, of a point as built and as it was timed.
BUILT = ("point", "effort", "MACs, mean", "MACs, at most", "branches")
TIMED = ("time, expected", "time, dearest image")


@dataclass(frozen=True, kw_only=True)
class EffortPoint:
    """What the build costs and answers at one effort, on `images` images; `accuracy` is the fraction of the metric.

    `time_ms` is what an image is expected to take on the first device measured, `worst_ms` what the image takes that
    takes most: CPU time of one thread, else wall time (None: not measured).
    """

    name: str
    effort: float
    macs: float
    worst_macs: float
    branches: float
    accuracy: float | None
    images: int
    time_ms: float | None = None
    worst_ms: float | None = None

    @property
    def times(self) -> tuple[float | None, float | None]:
        """What an image takes, as expected and at most."""
        return self.time_ms, self.worst_ms


def effort_points(manifest: Manifest, measurement: Measurement | None = None) -> tuple[EffortPoint, ...]:
    """Return the efforts that the build was measured at; none of an older build, or without gates."""
    timed = {point.name: point for point in measurement.points} if measurement else {}
    alone = measurement is not None and measurement.environment.threads == 1
    found = []
    for point in manifest.points:
        share = point.top1 or point.agreement
        time_ms, worst_ms = _times(timed.get(point.name) if point.name else None, alone=alone)
        found.append(
            EffortPoint(
                name=point.name or "",
                effort=point.effort,
                macs=max(point.macs, 0.0),
                worst_macs=max(point.worst_macs, 1),
                branches=point.branches,
                accuracy=min(max(share.value, 0.0), 1.0) if share else None,
                images=point.images,
                time_ms=time_ms,
                worst_ms=worst_ms,
            )
        )
    return tuple(sorted(found, key=lambda each: each.macs))


def _times(timed: PointLatency | None, *, alone: bool) -> tuple[float | None, float | None]:
    if timed is None:
        return None, None
    found = (timed.expected_cpu_ms, timed.worst_cpu_ms) if alone else (timed.expected_wall_ms, timed.worst_wall_ms)
    return (found[0], max(found)) if min(found) > 0 else (None, None)


def effort_metric(manifest: Manifest) -> str:
    """Return what the accuracy of the points is, in words."""
    points = manifest.points
    if any(point.top1 for point in points):
        return "Top-1"
    against = {"original": "the original", "float": "its own float model"}
    return f"Agreement with {against[points[0].against]}" if points else ""


def timed(points: Sequence[EffortPoint]) -> bool:
    """Return whether a device told the times of points."""
    return any(point.time_ms is not None for point in points)


def head(points: Sequence[EffortPoint], metric: str) -> list[str]:
    """Return the words above `rows`."""
    return [*BUILT, metric or "accuracy", *(TIMED if timed(points) else ())]


def rows(points: Sequence[EffortPoint]) -> list[list[str]]:
    """Return a row per effort, from the cheapest."""
    return [
        [
            point.name or say.UNKNOWN,
            effort_text(point.effort),
            say.count(point.macs),
            say.count(point.worst_macs),
            f"{point.branches:.1f}",
            say.percent(point.accuracy),
            *([say.ms(point.time_ms), say.ms(point.worst_ms)] if timed(points) else []),
        ]
        for point in points
    ]


def alike(points: Sequence[EffortPoint]) -> str:
    """Return which named points are one and the same, as a sentence; nothing where all differ."""
    by_effort: dict[float, list[str]] = {}
    for point in points:
        if point.name:
            by_effort.setdefault(point.effort, []).append(point.name)
    same = [" and ".join(names) for names in by_effort.values() if len(names) > 1]
    if not same:
        return ""
    return f"{'; '.join(same)} are one point: effort leaves no cheaper one that keeps as many answers."
