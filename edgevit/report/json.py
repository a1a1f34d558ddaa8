"""The report as JSON, for scripts: numbers as numbers, a schema version, units in the keys."""

from __future__ import annotations

from edgevit.report.view import Report, without_samples
from edgevit.util import strict_json


def render(report: Report) -> str:
    """Return stable JSON text; single runs and memory points stay in the measurement's own file."""
    return strict_json.dumps(without_samples(report))
