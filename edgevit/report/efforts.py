"""What a build costs and answers at each effort that it was measured at."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.schema.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class EffortPoint:
    """What the build costs and answers at one effort, on `images` images; `accuracy` is the fraction of the metric."""

    name: str
    effort: float
    macs: float
    worst_macs: float
    branches: float
    accuracy: float | None
    images: int


def effort_points(manifest: Manifest) -> tuple[EffortPoint, ...]:
    """Return the efforts that the build was measured at; none of an older build, or without gates."""
    found = []
    for point in manifest.points:
        share = point.top1 or point.agreement
        found.append(
            EffortPoint(
                name=point.name or "",
                effort=point.effort,
                macs=max(point.macs, 0.0),
                worst_macs=max(point.worst_macs, 1),
                branches=point.branches,
                accuracy=min(max(share.value, 0.0), 1.0) if share else None,
                images=point.images,
            )
        )
    return tuple(sorted(found, key=lambda each: each.macs))


def effort_metric(manifest: Manifest) -> str:
    """Return what the accuracy of the points is, in words."""
    points = manifest.points
    if any(point.top1 for point in points):
        return "Top-1"
    against = {"original": "the original", "float": "its own float model"}
    return f"Agreement with {against[points[0].against]}" if points else ""
