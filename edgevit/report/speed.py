"""This build's time of an image beside that of what was timed with it."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Time of an image of one model: this build (`ours`), or what it is held against.

    `ratio` is that of its time over the build's (None: not timed, and `why` says so).
    """

    name: str
    runtime: str
    ours: bool = False
    time_ms: float | None = None
    ratio: float | None = None
    why: str = ""


def speed_rows(manifest: Manifest, measurement: Measurement) -> tuple[SpeedRow, ...]:
    """Return this build and what was timed beside it, in the same clock: CPU time of one thread, else wall time."""
    alone = measurement.environment.threads == 1
    ours = measurement.expected_cpu_ms if alone else measurement.expected_wall_ms
    if not ours or ours < 0 or not measurement.baselines:
        return ()
    rows = [SpeedRow(name="this build", runtime=manifest.backend, ours=True, time_ms=ours, ratio=1.0)]
    for other in measurement.baselines:
        times = other.cpu if alone else other.wall
        taken = None if times is None else times.median_ms
        ratio = None if taken is None else taken / ours
        named = f"{other.runtime} {other.runtime_version}"
        rows.append(SpeedRow(name=other.name, runtime=named, time_ms=taken, ratio=ratio, why=other.why))
    return tuple(rows)
