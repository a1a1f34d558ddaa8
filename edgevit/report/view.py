"""Everything a report shows, computed once: the terminal table, the JSON and the page only lay it out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from edgevit.errors import BundleError
from edgevit.program.original import told, when_compressed
from edgevit.program.spec import OriginalSpec
from edgevit.report.cards import Thumbs
from edgevit.report.devices import DeviceRow, device_rows
from edgevit.report.differences import Difference, differences
from edgevit.report.efforts import EffortPoint, effort_metric, effort_points
from edgevit.report.memory_view import MemoryView, memory_view
from edgevit.report.speed import SpeedRow, speed_rows
from edgevit.schema.budget import BudgetCheck, check_budgets
from edgevit.schema.claims import Claim
from edgevit.schema.manifest import AccuracyRow, BranchFacts, BundleFile, Macs, Manifest, Sizes, TokenUse
from edgevit.schema.measurement import BranchMeasurement, Latency, Measurement, not_the_device
from edgevit.schema.memory_bound import MemoryBound
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target
from edgevit.util.notebook import Shown

T = TypeVar("T", bound="Latency | None")
REPORT_SCHEMA = 2
DISTURBED_RATIO = 1.2
RateSource = Literal["measured", "calibration", "always", "removed"]


@dataclass(frozen=True, kw_only=True)
class BranchRow:
    """One branch. `open_rate` is from the first measurement on real images if there is one, else from calibration."""

    name: str
    kind: str
    block: int
    unit: str
    units: int
    units_total: int
    macs: int
    macs_share: float
    gated: bool
    open_rate: float
    open_rate_source: RateSource
    open_time_ms: float | None
    skipped_time_ms: float | None
    memory_bytes: int | None
    int8_linears: int
    linears: int
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Before:
    """A figure before and after; `ratio` is after / before."""

    before: float
    after: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Report(Shown):
    """A bundle and what was measured of it. `bundle_sha256` is None in the report inside the bundle itself.

    `accuracy_change` is top-1 of the model `accuracy_before` ('original', or 'compressed' where the original is not
    known on the images) and of the bundle; `compression_points` and `quantization_points` of top-1 went to each step.
    `agreement` is with the original where that is known, `float_agreement` with the float model that was quantized.
    `original_unknown` says in words why the bundle is not held against its original ("": it is), `when_compressed` what
    the original and the model made of it said on labelled images before the build.
    `not_the_device` says so where the first measurement is of another machine than the bundle was built for. Of several
    bundles `bundles` are the names and `differences` what is not the same; all else is of the first.
    `budgets` are those of the target, held against the build and the first measurement.
    `speed` is the first measurement's, this build first. `efforts` are from the cheapest, `effort_metric` what their
    accuracy is. `tokens` says how many an image keeps where that follows the image. `files` are the bundle's (none in
    the report inside the bundle itself), `thumbs` small pictures of the images.
    """

    schema: int = REPORT_SCHEMA
    name: str
    bundle_sha256: str | None
    runtime: str
    target: Target
    recipe: Recipe
    tools: dict[str, str]
    origin: dict[str, str]
    input_size: tuple[int, int]
    sizes: Sizes
    macs: Macs
    bound: MemoryBound
    claims: tuple[Claim, ...]
    accuracy: tuple[AccuracyRow, ...]
    branches: tuple[BranchRow, ...]
    gated_branches: int
    removed_branches: int
    mean_branches_open: float
    size_change: Before
    parameters_change: Before
    macs_change: Before
    expected_macs_change: Before
    accuracy_change: Before | None
    agreement: AccuracyRow | None
    expected_time_change: Before | None
    unattributed_time_ms: float | None
    disturbed: bool
    measured_peak_bytes: int | None
    memory: MemoryView | None
    measurements: tuple[Measurement, ...]
    devices: tuple[DeviceRow, ...] = ()
    original: OriginalSpec | None = None
    original_unknown: str = ""
    when_compressed: str = ""
    compression: tuple[str, ...] = ()
    accuracy_before: str | None = None
    compression_points: float | None = None
    quantization_points: float | None = None
    float_agreement: AccuracyRow | None = None
    not_the_device: str = ""
    bundles: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    budgets: tuple[BudgetCheck, ...] = ()
    speed: tuple[SpeedRow, ...] = ()
    efforts: tuple[EffortPoint, ...] = ()
    tokens: TokenUse | None = None
    effort_metric: str = ""
    files: tuple[BundleFile, ...] = ()
    thumbs: tuple[Thumbs, ...] = ()


def make_report(
    manifest: Manifest,
    measurements: Sequence[Measurement] = (),
    *,
    bundle_sha256: str | None = None,
    others: Sequence[tuple[Manifest, Sequence[Measurement]]] = (),
    names: Sequence[str] = (),
) -> Report:
    """Put a bundle and its measurements together; the first measurement fills the columns of the branch table.

    `others` are bundles of the same model, with measurements of theirs: all devices are shown side by side. `names` are
    those of all bundles (default: what their manifests say).

    Raises:
        BundleError: a measurement is of another bundle, or another bundle of another model.
    """
    for measurement in measurements:
        _require_fit(measurement, manifest, bundle_sha256)
    first = measurements[0] if measurements else None
    rows = _branch_rows(manifest, first)
    several = [(manifest, measurements), *others]
    names = names or [each.name for each, _ in several]
    return Report(
        name=manifest.name,
        bundle_sha256=bundle_sha256,
        runtime=manifest.backend,
        target=manifest.target,
        recipe=manifest.recipe,
        tools=manifest.tools,
        origin=manifest.origin,
        input_size=(manifest.input.shape[1], manifest.input.shape[2]),
        sizes=manifest.sizes,
        macs=manifest.macs,
        bound=manifest.bound,
        claims=manifest.claims,
        accuracy=manifest.accuracy,
        branches=rows,
        gated_branches=sum(row.gated for row in rows),
        removed_branches=sum(row.open_rate_source == "removed" for row in rows),
        mean_branches_open=sum(row.open_rate for row in rows),
        size_change=_change(manifest.sizes.float_bytes, manifest.sizes.model_bytes),
        parameters_change=_change(manifest.sizes.dense_parameters, manifest.sizes.parameters),
        macs_change=_change(manifest.macs.dense, manifest.macs.all_open),
        expected_macs_change=_change(manifest.macs.dense, manifest.macs.expected),
        accuracy_change=_accuracy_change(manifest.accuracy),
        agreement=_agreement(manifest.accuracy, "original") or _agreement(manifest.accuracy, "float"),
        expected_time_change=_time_change(first),
        unattributed_time_ms=first.unattributed_time_ms if first else None,
        disturbed=_disturbed(first),
        measured_peak_bytes=_peak(manifest.bound, first),
        memory=memory_view(manifest.bound, first.memory) if first and first.memory else None,
        measurements=tuple(measurements),
        original=manifest.original,
        original_unknown=_original_unknown(manifest),
        when_compressed=when_compressed(manifest.original, manifest.outputs[0].shape[-1], labelled=True),
        compression=_compression(manifest),
        accuracy_before=_before(manifest.accuracy),
        compression_points=_points(manifest.accuracy, "original", "compressed"),
        quantization_points=_points(manifest.accuracy, "compressed", "bundle"),
        float_agreement=_agreement(manifest.accuracy, "float"),
        devices=device_rows(several, names),
        bundles=tuple(names) if others else (),
        differences=differences([each for each, _ in several]),
        not_the_device=not_the_device(manifest.target, first.environment) if first and first.paths else "",
        budgets=check_budgets(manifest, first),
        speed=speed_rows(manifest, first) if first else (),
        efforts=effort_points(manifest, first if first and first.paths else None),
        tokens=manifest.tokens,
        effort_metric=effort_metric(manifest),
        files=manifest.files,
    )


def _require_fit(measurement: Measurement, manifest: Manifest, bundle_sha256: str | None) -> None:
    """Refuse a measurement of another bundle, or one whose images do not have what the bundle's have.

    Raises:
        BundleError: it is one.
    """
    told = f"the measurement of {measurement.bundle!r}"
    if measurement.bundle_sha256 != bundle_sha256:
        raise BundleError(
            f"{told} is of bundle {measurement.bundle_sha256[:12]}, this is {(bundle_sha256 or '')[:12]} "
            f"({manifest.name}); run `edgevit profile` on this bundle"
        )
    branches = len(manifest.branches)
    if any(len(gates) != branches or gates.strip("01") for gates in measurement.gates):
        raise BundleError(
            f"{told} has gates that are not a 1 or a 0 for each of the {branches} branches; run `edgevit profile` again"
        )
    points = len(manifest.tokens.points) if manifest.tokens else 0
    if any(len(left) != points for left in measurement.tokens):
        raise BundleError(
            f"{told} has numbers of tokens that are not one for each of the {points} points where they merge; run "
            "`edgevit profile` again"
        )


def _branch_rows(manifest: Manifest, measurement: Measurement | None) -> tuple[BranchRow, ...]:
    measured = {row.name: row for row in measurement.branches} if measurement else {}
    return tuple(_branch_row(branch, measured.get(branch.name), manifest) for branch in manifest.branches)


def _branch_row(branch: BranchFacts, measured: BranchMeasurement | None, manifest: Manifest) -> BranchRow:
    removed = branch.units == 0
    source: RateSource = "measured" if measured else "calibration"
    rate = measured.open_rate if measured else branch.open_rate or 0.0
    if not branch.gated:
        source, rate = ("removed", 0.0) if removed else ("always", 1.0)
    found = re.match(r"b(\d+)_", branch.name)
    return BranchRow(
        name=branch.name,
        kind=branch.kind,
        block=int(found[1]) if found else 0,
        unit="heads" if branch.kind == "mhsa" else "neurons",
        units=branch.units,
        units_total=branch.units_total,
        macs=branch.macs,
        macs_share=branch.macs / manifest.macs.all_open,
        gated=branch.gated,
        open_rate=rate,
        open_rate_source=source,
        open_time_ms=measured.open_time_ms if measured and not removed else None,
        skipped_time_ms=measured.skipped_time_ms if measured else None,
        memory_bytes=branch.memory_bytes,
        int8_linears=branch.int8_linears,
        linears=branch.linears,
        error=branch.error,
    )


def _change(before: float, after: float) -> Before:
    return Before(before=before, after=after, ratio=after / before)


def _top1(rows: Sequence[AccuracyRow]) -> dict[str, float]:
    """Return the top-1 on the real path by model, in the rows' order."""
    return {row.model: row.value for row in rows if row.metric == "top1" and row.path == "real"}


def _agreement(rows: Sequence[AccuracyRow], against: str) -> AccuracyRow | None:
    """Return of the bundle on its real path, with the model `against`."""
    wanted = ("bundle", "agreement", against, "real")
    return next((row for row in rows if (row.model, row.metric, row.against, row.path) == wanted), None)


def _before(rows: Sequence[AccuracyRow]) -> str | None:
    return next((name for name in _top1(rows) if name != "bundle"), None)


def _accuracy_change(rows: Sequence[AccuracyRow]) -> Before | None:
    """Return the top-1 of the original, or of the compressed model where that is all there is, and of the bundle."""
    top1, before = _top1(rows), _before(rows)
    return _change(top1[before], top1["bundle"]) if before and top1[before] and "bundle" in top1 else None


def _points(rows: Sequence[AccuracyRow], before: str, after: str) -> float | None:
    """Return difference of two models' top-1 as a fraction, negative where it is lost."""
    top1 = _top1(rows)
    return top1[after] - top1[before] if before in top1 and after in top1 else None


def _original_unknown(manifest: Manifest) -> str:
    """Return why a compressed bundle has no row against its original."""
    known = any("original" in (row.model, row.against) for row in manifest.accuracy)
    lessened = manifest.original is not None or any(b.gated or b.units < b.units_total for b in manifest.branches)
    if known or not lessened or not manifest.accuracy:
        return ""
    return told(manifest.original, manifest.outputs[0].shape[-1])


def _compression(manifest: Manifest) -> tuple[str, ...]:
    return manifest.original.steps if manifest.original else ()


def _time_change(measurement: Measurement | None) -> Before | None:
    """Return CPU time of the all-open path against the expected one."""
    opened = next((p for p in measurement.paths if p.path == "all_open"), None) if measurement else None
    expected = measurement.expected_cpu_ms if measurement else None
    return _change(opened.cpu.median_ms, expected) if opened and expected is not None else None


def _disturbed(measurement: Measurement | None) -> bool:
    """Return whether single-threaded runs waited for the processor: their wall time is far above their CPU time."""
    if measurement is None or measurement.environment.threads != 1:
        return False
    return any(path.wall.median_ms > DISTURBED_RATIO * path.cpu.median_ms for path in measurement.paths)


def _peak(bound: MemoryBound, measurement: Measurement | None) -> int | None:
    """Largest peak seen in the terms of the bound, at build time or here; without a bound, what the process grew by."""
    if not bound.proven:
        process = measurement.process if measurement else None
        return process.peak_bytes - process.imported_bytes if process else None
    here = measurement.memory if measurement and measurement.memory else None
    seen = [bound.measured_peak_bytes, here.peak_bytes if here and here.of == "runtime" else None]
    return max((peak for peak in seen if peak is not None), default=None)


def without_samples(report: Report) -> Report:
    """Return the same report, with single runs and memory points left out: what a script or a bundle needs."""
    slim = tuple(
        dataclasses.replace(
            m,
            gates=(),
            baselines=tuple(dataclasses.replace(b, wall=_without(b.wall), cpu=_without(b.cpu)) for b in m.baselines),
            memory=dataclasses.replace(m.memory, points=()) if m.memory else None,
            paths=tuple(dataclasses.replace(p, wall=_without(p.wall), cpu=_without(p.cpu)) for p in m.paths),
        )
        for m in report.measurements
    )
    memory = dataclasses.replace(report.memory, points=()) if report.memory else None
    return dataclasses.replace(report, measurements=slim, memory=memory)


def _without(times: T) -> T:
    return dataclasses.replace(times, samples_ms=()) if times is not None else times
