"""Several devices of one model side by side, whichever bundles were built of it for them: one row per measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgevit.errors import BundleError
from edgevit.report import text as say
from edgevit.schema.manifest import Bundle, Manifest, PathName
from edgevit.schema.measurement import Measurement, not_the_device

PATHS: tuple[PathName, ...] = ("all_open", "all_skipped", "real")
HEAD = ("device", "built for", "all open", "all skipped", "real images", "memory", "of bound", "golden outputs")
MEANING = (
    "Times are medians, CPU time where one thread runs and wall time else; of real images the expected one. instr: "
    "executed instructions, of emulated processors. Memory is what the runtime holds at most, beside its part of the "
    "bound."
)
HERE = ("local", "qemu")  # other machines are reached over something


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One measurement. Times in ms and instructions by path, as far as they are known there.

    `cycles` is an estimate, (at least, at most) on real images. `peak_bytes` is to be held against `limit_bytes`.
    `logit_error`, `gates_equal` and `tokens_equal` are of the golden inputs, None where they were not run. `bundle`
    names the bundle where there are several.
    """

    device: str
    target: str
    bundle: str = ""
    runtime: str
    int8: bool
    bundle_sha256: str
    time_ms: dict[str, float]
    instructions: dict[str, float]
    cycles: tuple[float, float] | None
    peak_bytes: int | None
    limit_bytes: int | None
    logit_error: float | None
    gates_equal: bool | None
    tokens_equal: bool | None = None


def device_rows(
    bundles: Sequence[tuple[Manifest, Sequence[Measurement]]], names: Sequence[str] = ()
) -> tuple[DeviceRow, ...]:
    """Return every measurement of every bundle, in order; `names` are the bundles', where there are several.

    Raises:
        BundleError: the bundles are not of one model.
    """
    names = names or [manifest.name for manifest, _ in bundles]
    models = [manifest.recipe.model for manifest, _ in bundles]
    for name, model in zip(names, models, strict=True):
        if model != models[0]:
            raise BundleError(
                f"{name} was built of {model}, {names[0]} of {models[0]}: builds of one model can be compared, however "
                "they were made; make a report for each"
            )
    told = names if len(bundles) > 1 else [""]
    return tuple(
        _row(manifest, measurement, name)
        for name, (manifest, measured) in zip(told, bundles, strict=True)
        for measurement in measured
    )


def assign(bundles: Sequence[Bundle], measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Return the measurements of each bundle, in the order of both.

    Raises:
        BundleError: a measurement is of none of them, or a bundle is given twice.
    """
    if len({bundle.sha256 for bundle in bundles}) < len(bundles):
        raise BundleError("one bundle is given twice (the sha256 of its manifest is the same); give each only once")
    found: dict[str, list[Measurement]] = {bundle.sha256: [] for bundle in bundles}
    for measurement in measurements:
        if measurement.bundle_sha256 not in found:
            known = ", ".join(f"{bundle.manifest.name} ({bundle.sha256[:12]})" for bundle in bundles)
            raise BundleError(
                f"the measurement of {measurement.bundle!r} is of bundle {measurement.bundle_sha256[:12]}, given is "
                f"{known}; give that bundle too, or run `edgevit profile` on this one"
            )
        found[measurement.bundle_sha256].append(measurement)
    return [found[bundle.sha256] for bundle in bundles]


def rows(devices: Sequence[DeviceRow]) -> Iterator[list[str]]:
    """Yield cells of every device, as `HEAD` names the columns."""
    for row in devices:
        yield [
            row.device,
            f"{row.bundle}{': ' if row.bundle else ''}{row.target} ({'int8' if row.int8 else 'float'})",
            *(_cost(row, path) for path in PATHS),
            say.size(row.peak_bytes),
            say.size(row.limit_bytes),
            _parity(row),
        ]


def _cost(row: DeviceRow, path: PathName) -> str:
    if path in row.time_ms:
        return say.ms(row.time_ms[path])
    return f"{say.count(row.instructions[path])} instr" if path in row.instructions else say.UNKNOWN


def _parity(row: DeviceRow) -> str:
    if row.logit_error is None:
        return say.UNKNOWN
    if not row.gates_equal:
        return "other gates"
    return "other numbers of tokens" if row.tokens_equal is False else f"within {row.logit_error:.2g}"


def _row(manifest: Manifest, measurement: Measurement, name: str) -> DeviceRow:
    machine, emulation = measurement.environment, measurement.emulation
    golden = emulation.golden if emulation else measurement.golden
    alone = machine.threads == 1  # then other programs do not show in CPU time
    times: dict[str, float] = {path.path: (path.cpu if alone else path.wall).median_ms for path in measurement.paths}
    expected = measurement.expected_cpu_ms if alone else measurement.expected_wall_ms
    if expected is not None:
        times["real"] = expected
    peak, limit = _memory(manifest, measurement)
    other = ", not the device it was built for" if times and not_the_device(manifest.target, machine) else ""
    hidden = machine.emulated_by is not None and emulation is None  # edgevit's own emulated device says so in its name
    how = "" if measurement.device in HERE else f" over {measurement.device}"
    return DeviceRow(
        device=f"{machine.cpu}{', emulated' if hidden else ''}{how}{other}",
        target=manifest.target.name,
        bundle=name,
        runtime=manifest.backend,
        int8=any(branch.int8_linears for branch in manifest.branches),
        bundle_sha256=measurement.bundle_sha256,
        time_ms=times,
        instructions={path.path: path.total for path in emulation.instructions} if emulation else {},
        cycles=_cycles(measurement),
        peak_bytes=peak,
        limit_bytes=limit,
        logit_error=max((case.logit_error for case in golden), default=None),
        gates_equal=all(case.gates_equal for case in golden) if golden else None,
        tokens_equal=all(case.tokens_equal for case in golden) if golden else None,
    )


def _memory(manifest: Manifest, measurement: Measurement) -> tuple[int | None, int | None]:
    """Return (peak, limit) in the same terms; no limit where the runtime cannot be bounded."""
    bound, emulation, memory = manifest.bound, measurement.emulation, measurement.memory
    limit = (bound.arena_bytes or bound.bound_bytes) if bound.proven else None
    if emulation is not None:
        return emulation.arena_peak_bytes, emulation.arena_bytes
    if memory is not None and memory.of == "runtime":
        return memory.peak_bytes, limit
    process = measurement.process
    return (process.peak_bytes - process.imported_bytes if process else None), None


def _cycles(measurement: Measurement) -> tuple[float, float] | None:
    estimate = measurement.emulation.estimate if measurement.emulation else None
    found = [path for path in estimate.paths if path.path == "real"] if estimate else []
    return (found[0].lower_cycles, found[0].upper_cycles) if found else None
