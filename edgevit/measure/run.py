"""Measure a bundle: latency per gate path, branch by branch behaviour on real images, and memory."""

from __future__ import annotations

import dataclasses
import importlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevit import __version__
from edgevit.measure.branch_times import Trace
from edgevit.measure.environment import emulator, environment, snapshot
from edgevit.measure.fresh_process import Probe, probe_local, probe_runner, trace_local
from edgevit.measure.percentiles import latency
from edgevit.measure.warnings import doubts, parity_doubts
from edgevit.schema.manifest import Bundle, Manifest, PathName
from edgevit.schema.measurement import (
    BranchMeasurement,
    GoldenParity,
    ImagesUsed,
    Measurement,
    PathLatency,
    not_the_device,
)
from edgevit.util.progress import track

WARM_UP_ROUNDS = 3
RUNS_PER_IMAGE = 4  # so that an image's median outlives one run that something else held up
TRACED_IMAGES = 16


class Runner(Protocol):
    """A loaded model, as `edgevit.backends` gives it."""

    def run(self, image: NDArray[np.uint8], effort: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Image uint8 `[1, height, width, 3]` to logits float32 `[1, classes]` and gates uint8 `[branches]`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """Single runs of one path: wall and process CPU time in ms, the image each ran on, and the gates it took."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    image: tuple[int, ...]
    gates: tuple[NDArray[np.uint8], ...]


TimedRun = tuple[float, float, int, NDArray[np.uint8]]  # wall and CPU time in ms, image, gates


def profile_bundle(
    bundle: Bundle,
    runner: Runner,
    images: NDArray[np.uint8],
    used: ImagesUsed,
    *,
    backend: str,
    runtime_version: str,
    runs: int,
    threads: int,
    cpus: Sequence[int] | None = None,
    golden: tuple[GoldenParity, ...] = (),
) -> Measurement:
    """Measure an opened bundle on this machine.

    Args:
        bundle: its hashes have been checked.
        runner: its model, loaded with `threads`.
        images: uint8 RGB `[n, height, width, 3]`, prepared as the manifest's contract says: gates are watched on all
            of them, and so many are timed, evenly spread, that each is run at least RUNS_PER_IMAGE times per path.
        used: what `images` are.
        backend: module of the backend, which loads the model in a fresh process, by its full name.
        runtime_version: version of the runtime.
        runs: timed runs per path.
        threads: threads of a run.
        cpus: those that this process is held to, for the record (None: all).
        golden: the bundle's golden inputs as they came out of `runner`.
    """
    manifest = bundle.manifest
    if emulator() is not None:
        return _untimed(
            bundle, runner, images, used, golden, runtime_version=runtime_version, threads=threads, cpus=cpus
        )
    target = manifest.target
    settings: dict[str, Any] = {
        "threads": threads,
        "precision": target.inference_precision,
        "weight_bits": target.weight_bits,
    }
    model, efforts = bundle.folder / manifest.model, path_efforts(manifest)
    few = images[:TRACED_IMAGES]
    probe = _probe(backend, model, few, list(efforts.values()), **settings)
    before = snapshot()
    timed = images[timed_images(len(images), runs)]
    timings = time_paths(runner, timed, efforts, runs)
    after = snapshot(since=before)
    gates = np.stack([runner.run(image[None])[1] for image in track(images, "Watching the gates")])
    branches = [branch.name for branch in manifest.branches]
    gated = [branch.name for branch in manifest.branches if branch.gated]
    trace = trace_local(backend, model, few, branches=branches, gated=gated, **settings)
    real = timings["real"]
    machine = environment(
        before,
        after,
        runtime=manifest.backend,
        runtime_version=runtime_version,
        inference_precision=settings["precision"],
        threads=threads,
        cpus=cpus,
    )
    return Measurement(
        bundle=manifest.name,
        bundle_sha256=bundle.sha256,
        edgevit=__version__,
        environment=machine,
        images=dataclasses.replace(used, timed=len(timed)),
        paths=tuple(path_latency(name, efforts[name], timing) for name, timing in timings.items()),
        expected_wall_ms=mean_of_image_medians(real.wall_ms, real.image),
        expected_cpu_ms=mean_of_image_medians(real.cpu_ms, real.image),
        branches=branch_times(manifest, gates.mean(axis=0), trace),
        unattributed_time_ms=trace.other_ms,
        memory=trace.memory or probe.trace,
        process=probe.process,
        load_ms=probe.load_ms,
        first_run_ms=probe.first_run_ms,
        warnings=(*parity_doubts(golden), *doubts(machine)),
        golden=golden,
        not_the_device=not_the_device(target, machine),
    )


def _probe(backend: str, model: Path, images: NDArray[np.uint8], efforts: list[float], **settings: Any) -> Probe:
    """A fresh process with the model: the program that a bundle of machine code ships, or this Python."""
    if importlib.import_module(backend).NATIVE:
        return probe_runner(backend, model, images[:1], efforts, threads=settings["threads"])
    return probe_local(backend, model, images, efforts, **settings)


def _untimed(
    bundle: Bundle,
    runner: Runner,
    images: NDArray[np.uint8],
    used: ImagesUsed,
    golden: tuple[GoldenParity, ...],
    *,
    runtime_version: str,
    threads: int,
    cpus: Sequence[int] | None,
) -> Measurement:
    """What an emulated machine can tell: which gates opened. It has neither the times nor the memory of a device."""
    manifest, now = bundle.manifest, snapshot()
    gates = np.stack([runner.run(image[None])[1] for image in track(images, "Watching the gates")])
    machine = environment(
        now,
        snapshot(),
        runtime=manifest.backend,
        runtime_version=runtime_version,
        inference_precision=manifest.target.inference_precision,
        threads=threads,
        cpus=cpus,
    )
    return Measurement(
        bundle=manifest.name,
        bundle_sha256=bundle.sha256,
        edgevit=__version__,
        environment=machine,
        images=dataclasses.replace(used, timed=0),
        paths=(),
        expected_wall_ms=None,
        expected_cpu_ms=None,
        branches=branch_times(manifest, gates.mean(axis=0), None),
        unattributed_time_ms=None,
        memory=None,
        process=None,
        load_ms=None,
        first_run_ms=None,
        warnings=(*parity_doubts(golden), *doubts(machine)),
        golden=golden,
    )


def timed_images(images: int, runs: int) -> slice:
    """Those of so many images that are timed: spread over all, and few enough to be run RUNS_PER_IMAGE times each."""
    return slice(None, None, max(1, math.ceil(RUNS_PER_IMAGE * images / runs)))


def path_efforts(manifest: Manifest) -> dict[PathName, float]:
    """The paths that can be asked for, with their effort; a bundle without gates has only one."""
    if manifest.effort is None:
        return {"real": 0.0}
    return {"all_open": manifest.effort.all_open, "all_skipped": manifest.effort.all_skipped, "real": 0.0}


def time_paths(
    runner: Runner, images: NDArray[np.uint8], efforts: Mapping[PathName, float], runs: int
) -> dict[PathName, Timing]:
    """Time every path `runs` times, interleaved round-robin: each round runs the paths one after the other."""
    rows: dict[PathName, list[TimedRun]] = defaultdict(list)
    order = timed_order(len(images), tuple(efforts), runs)
    for path, index, counts in track(order, f"Timing {len(efforts)} paths, {runs} rounds"):
        image = images[index : index + 1]
        cpu, wall = time.process_time(), time.perf_counter()
        _, gates = runner.run(image, effort=efforts[path])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if counts:
            rows[path].append((1000 * wall, 1000 * cpu, index, gates))
    return {path: timing(timed) for path, timed in rows.items()}


def timed_order(images: int, paths: Sequence[PathName], runs: int) -> list[tuple[PathName, int, bool]]:
    """(path, image, whether it counts) of every run: first those that warm up, then round-robin over the paths."""
    warm_up: list[tuple[PathName, int, bool]] = [(path, 0, False) for path in paths] * WARM_UP_ROUNDS
    return warm_up + [(path, index % images, True) for index in range(runs) for path in paths]


def timing(runs: Sequence[TimedRun]) -> Timing:
    """The runs of one path."""
    return Timing(
        wall_ms=tuple(r[0] for r in runs),
        cpu_ms=tuple(r[1] for r in runs),
        image=tuple(r[2] for r in runs),
        gates=tuple(r[3] for r in runs),
    )


def mean_of_image_medians(samples_ms: tuple[float, ...], image: tuple[int, ...]) -> float:
    """Expected time of an image drawn from those measured: the mean over images of each image's median."""
    by_image: dict[int, list[float]] = defaultdict(list)
    for sample, index in zip(samples_ms, image, strict=True):
        by_image[index].append(sample)
    return statistics.fmean(statistics.median(samples) for samples in by_image.values())


def path_latency(name: PathName, effort: float, timing: Timing) -> PathLatency:
    return PathLatency(
        path=name,
        effort=effort,
        branches_open=float(np.mean([gates.sum() for gates in timing.gates])),
        wall=latency(timing.wall_ms),
        cpu=latency(timing.cpu_ms),
    )


def branch_times(manifest: Manifest, rates: NDArray[np.float64], trace: Trace | None) -> tuple[BranchMeasurement, ...]:
    """Rows of the branches; without a trace their times are withheld."""
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
