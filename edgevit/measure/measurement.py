"""The one place that makes a Measurement, of what a machine answered."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevit import __version__
from edgevit.measure.branch_times import Trace
from edgevit.measure.fresh_process import Probe
from edgevit.measure.percentiles import latency
from edgevit.measure.warnings import golden_warnings, measurement_warnings
from edgevit.schema.manifest import Bundle, Manifest, PathName
from edgevit.schema.measurement import (
    Baseline,
    BranchMeasurement,
    Emulation,
    Environment,
    GoldenParity,
    ImagesUsed,
    Measurement,
    PathLatency,
    PointLatency,
    not_the_device,
)
from edgevit.schema.points import PointName


@dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """Single runs of one path: wall and process CPU time in ms, the image each ran on, and the gates it took."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    image: tuple[int, ...]
    gates: tuple[NDArray[np.uint8], ...]


TimedRun = tuple[float, float, int, NDArray[np.uint8]]  # wall and CPU time in ms, image, gates


@dataclass(frozen=True, kw_only=True, eq=False)
class Times:
    """What only a machine with a time of its own tells.

    Attributes:
        images: how many were timed.
        paths: the timed runs of each path, `real` among them, and of each named operating point that is none of them.
        trace: inside a run, branch by branch.
        probe: a fresh process with the model.
        baselines: other forms of the model, timed in the same run.
    """

    images: int
    paths: Mapping[str, Timing]
    trace: Trace
    probe: Probe
    baselines: tuple[Baseline, ...] = ()


def make_measurement(
    bundle: Bundle,
    machine: Environment,
    used: ImagesUsed,
    gates: NDArray[np.uint8],
    *,
    device: str = "local",
    golden: tuple[GoldenParity, ...] = (),
    times: Times | None = None,
    emulation: Emulation | None = None,
    warnings: Sequence[str] = (),
    tokens: Sequence[Sequence[int]] = (),
    effort: float | None = None,
) -> Measurement:
    """Return the Measurement of a bundle.

    Args:
        bundle: what was measured.
        machine: where, around the timed runs.
        used: the images.
        gates: of every image on the real path, uint8 `[images, branches]`.
        device: how the machine was reached.
        golden: the golden inputs as they came out there.
        times: None: the machine has none of its own, and they are withheld.
        emulation: what an emulated processor tells instead; its warnings are all in `warnings`.
        warnings: those to tell beside what the machine itself gives reason for.
        tokens: of every image on the real path, where their number follows the image.
        effort: of the real path (None: as calibrated, and the named points were timed too).
    """
    manifest = bundle.manifest
    seen = measurement_warnings(machine) if emulation is None else ()
    untimed = Measurement(
        bundle=manifest.name,
        bundle_sha256=bundle.sha256,
        edgevit=__version__,
        device=device,
        environment=machine,
        images=dataclasses.replace(used, timed=times.images if times else 0),
        paths=(),
        expected_wall_ms=None,
        expected_cpu_ms=None,
        branches=branch_times(manifest, gates.mean(axis=0), times.trace if times else None),
        unattributed_time_ms=None,
        memory=None,
        process=None,
        load_ms=None,
        first_run_ms=None,
        warnings=(*golden_warnings(golden), *seen, *warnings),
        golden=golden,
        emulation=emulation,
        gates=tuple("".join(map(str, row)) for row in gates.astype(int)),
        tokens=tuple(tuple(map(int, row)) for row in tokens),
        effort=effort or 0.0,
    )
    if times is None:
        return untimed
    real = times.paths["real"]
    return dataclasses.replace(
        untimed,
        paths=tuple(
            path_latency(name, at, times.paths[name])
            for name, at in path_efforts(manifest, effort).items()
            if name in times.paths
        ),
        points=point_times(manifest, times.paths) if effort is None else (),
        expected_wall_ms=mean_of_image_medians(real.wall_ms, real.image),
        expected_cpu_ms=mean_of_image_medians(real.cpu_ms, real.image),
        unattributed_time_ms=times.trace.other_ms,
        memory=times.trace.memory or times.probe.trace,
        process=times.probe.process,
        load_ms=times.probe.load_ms,
        first_run_ms=times.probe.first_run_ms,
        baselines=times.baselines,
        not_the_device=not_the_device(manifest.target, machine),
    )


def path_efforts(manifest: Manifest, effort: float | None = None) -> dict[PathName, float]:
    """Return the paths that can be asked for, with their effort; a bundle without gates has only one."""
    real = effort or 0.0
    if manifest.effort is None:
        return {"real": real}
    return {"all_open": manifest.effort.all_open, "all_skipped": manifest.effort.all_skipped, "real": real}


def timed_efforts(manifest: Manifest, effort: float | None = None) -> dict[str, float]:
    """Return what is timed, with its effort: the paths and, unless an effort is asked for, points that are no path."""
    found: dict[str, float] = dict(path_efforts(manifest, effort))  # type: ignore[arg-type]
    for point in manifest.points if effort is None else ():
        if point.name is not None and point.effort not in found.values():
            found[point.name] = point.effort
    return found


def point_times(manifest: Manifest, timings: Mapping[str, Timing]) -> tuple[PointLatency, ...]:
    """Return the times of the named operating points, of runs with their effort, whatever these are called."""
    asked = {effort: name for name, effort in reversed(timed_efforts(manifest).items())}
    return tuple(
        point_latency(point.name, point.effort, timings[asked[point.effort]])
        for point in manifest.points
        if point.name is not None
    )


def point_latency(name: PointName, effort: float, timing: Timing) -> PointLatency:
    """Return the time of an image at one point."""
    medians = {clock: image_medians(getattr(timing, f"{clock}_ms"), timing.image) for clock in ("wall", "cpu")}
    return PointLatency(
        name=name,
        effort=effort,
        branches_open=float(np.mean([gates.sum() for gates in timing.gates])),
        expected_wall_ms=statistics.fmean(medians["wall"]),
        expected_cpu_ms=statistics.fmean(medians["cpu"]),
        worst_wall_ms=max(medians["wall"]),
        worst_cpu_ms=max(medians["cpu"]),
        p95_wall_ms=latency(timing.wall_ms).p95_ms,
        p95_cpu_ms=latency(timing.cpu_ms).p95_ms,
    )


def timing(runs: Sequence[TimedRun]) -> Timing:
    """Return the runs of one path."""
    return Timing(
        wall_ms=tuple(r[0] for r in runs),
        cpu_ms=tuple(r[1] for r in runs),
        image=tuple(r[2] for r in runs),
        gates=tuple(r[3] for r in runs),
    )


def mean_of_image_medians(samples_ms: tuple[float, ...], image: tuple[int, ...]) -> float:
    """Return the expected time of an image drawn from those measured: the mean of each image's median."""
    return statistics.fmean(image_medians(samples_ms, image))


def image_medians(samples_ms: tuple[float, ...], image: tuple[int, ...]) -> list[float]:
    """Return the median time of each image."""
    by_image: dict[int, list[float]] = defaultdict(list)
    for sample, index in zip(samples_ms, image, strict=True):
        by_image[index].append(sample)
    return [statistics.median(samples) for samples in by_image.values()]


def path_latency(name: PathName, effort: float, timing: Timing) -> PathLatency:
    return PathLatency(
        path=name,
        effort=effort,
        branches_open=float(np.mean([gates.sum() for gates in timing.gates])),
        wall=latency(timing.wall_ms),
        cpu=latency(timing.cpu_ms),
    )


def timed_baseline(said: Baseline, timing: Timing | None) -> Baseline:
    """Return what is said of a baseline with its times, if it was timed."""
    if timing is None:
        return said
    return dataclasses.replace(said, wall=latency(timing.wall_ms), cpu=latency(timing.cpu_ms))


def branch_times(manifest: Manifest, rates: NDArray[np.float64], trace: Trace | None) -> tuple[BranchMeasurement, ...]:
    """Return rows of the branches; without a trace their times are withheld."""
    return tuple(
        BranchMeasurement(
            name=branch.name,
            open_rate=float(rate),
            open_time_ms=trace.open_ms.get(branch.name) if trace else None,
            skipped_time_ms=trace.skipped_ms.get(branch.name) if trace else None,
            time_source=trace.source if trace else "withheld",
        )
        for branch, rate in zip(manifest.branches, rates, strict=True)
    )
