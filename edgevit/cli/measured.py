"""A Measurement as a few lines for a person."""

from __future__ import annotations

from collections.abc import Iterator

from edgevit.bundlespec import Measurement


def lines(measurement: Measurement) -> Iterator[str]:
    """Where it was made, one line per path, and what an image is expected to cost."""
    machine = measurement.environment
    if measurement.device != "local":
        held = f", held to CPUs {', '.join(map(str, machine.cpus))}" if machine.cpus is not None else ""
        yield (
            f"{machine.cpu} ({machine.arch}, {machine.cores} cores), {machine.runtime} {machine.runtime_version}, "
            f"{machine.threads} thread{'s' * (machine.threads > 1)}{held}"
        )
    for path in measurement.paths:
        yield (
            f"{path.path:<12} {path.wall.median_ms:8.2f} ms wall  {path.cpu.median_ms:8.2f} ms CPU  "
            f"{path.branches_open:.1f} of {len(measurement.branches)} branches ran"
        )
    if measurement.expected_wall_ms is not None:
        yield f"{'expected':<12} {measurement.expected_wall_ms:8.2f} ms wall  {measurement.expected_cpu_ms:8.2f} ms CPU"
    else:
        mean = sum(branch.open_rate for branch in measurement.branches)
        yield f"times withheld; on average {mean:.1f} of {len(measurement.branches)} branches ran"
