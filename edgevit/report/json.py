"""The report as JSON, for scripts: numbers as numbers, a schema version, units in the keys."""

from __future__ import annotations

from edgevit import serial
from edgevit.report.view import Report, without_samples


def render(report: Report) -> str:
    """Stable JSON text; single runs and memory points stay in the measurement's own file."""
    return serial.dumps(without_samples(report))
