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
    if measurement is None:
        raise BundleError(
            f"{path} has faults:\n" + "\n".join(f"  - {fault}" for fault in strict_json.first(faults, 20))
        )
    return measurement
