"""A Measurement's own file: written by `edgevit profile`, read by `edgevit report`."""

from __future__ import annotations

from pathlib import Path

from edgevit.errors import BundleError, OutputError
from edgevit.schema.measurement import MEASUREMENT_SCHEMA, Measurement
from edgevit.util import atomic, strict_json


def write_measurement(measurement: Measurement, path: Path, *, force: bool = True) -> None:
    """Write by rename; `force` replaces another measurement.

    Raises:
        OutputError: there is something that is not to be replaced, or the disk refuses.
    """
    atomic.refuse_existing(path, "measurement", force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write_atomic(path, strict_json.dumps(measurement), replace=force)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read_measurement(path: Path) -> Measurement:
    """Read and check.

    Raises:
        BundleError: missing, not a measurement, or of another schema version.
    """
    try:
        data = strict_json.read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path} cannot be read as a measurement: {reason}; `edgevit profile` writes one") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != MEASUREMENT_SCHEMA:
        raise BundleError(
            f"{path} has schema {strict_json.shown(schema)}; "
            f"this edgevit reads measurements of schema {MEASUREMENT_SCHEMA}"
        )
    faults: list[str] = []
    measurement = strict_json.from_data(Measurement, data, faults, "measurement")
    if measurement is not None:
        faults += _miscounted(measurement)
    if measurement is None or faults:
        raise BundleError(
            f"{path} has faults:\n" + "\n".join(f"  - {fault}" for fault in strict_json.first(faults, 20))
        )
    return measurement


def _miscounted(measurement: Measurement) -> list[str]:
    """Return the paths whose numbers of runs are not those of their times, by either clock."""
    return [
        f"measurement.paths: {path.path} has {path.wall.runs} runs, {len(path.wall.samples_ms)} wall times and "
        f"{len(path.cpu.samples_ms)} CPU times; these must be as many"
        for path in measurement.paths
        if not 0 < path.wall.runs == path.cpu.runs == len(path.wall.samples_ms) == len(path.cpu.samples_ms)
    ]
