"""Measure a bundle: latency per gate path, branch by branch behaviour on real images, and memory."""

from __future__ import annotations

import importlib
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevit.measure.environment import emulator, environment, snapshot
from edgevit.measure.fresh_process import Probe, probe_local, probe_runner, trace_local
from edgevit.measure.measurement import (
    TimedRun,
    Times,
    Timing,
    make_measurement,
    path_efforts,
    timed_baseline,
    timed_efforts,
    timing,
)
from edgevit.schema.manifest import Bundle, Manifest, counts_tokens
from edgevit.schema.measurement import Baseline, GoldenParity, ImagesUsed, Measurement
from edgevit.util.progress import track

WARM_UP_ROUNDS = 3
RUNS_PER_IMAGE = 4  # so that an image's median outlives one run that something else held up
TRACED_IMAGES = 16
P = TypeVar("P", bound=str)
TURN = 8  # rounds of one model before another takes its turn
Turn = tuple[str, int, bool]  # path or model, image, whether it counts


class Runner(Protocol):
    """A loaded model, as `edgevit.backends` gives it."""

    def run(self, image: NDArray[np.uint8], effort: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return image uint8 `[1, height, width, 3]` to logits float32 `[1, classes]` and gates uint8 `[branches]`."""
        ...

    def answer(
        self, image: NDArray[np.uint8], effort: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32]]:
        """Return logits, gates, and the tokens `[points]` that are left after each point where they merge."""
        ...


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
    beside: Mapping[str, Runner] | None = None,
    baselines: Sequence[Baseline] = (),
    effort: float | None = None,
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
        beside: other forms of the model by name, loaded with as many threads, whose runs take turns with the bundle's.
        baselines: what is said of each; those that are not in `beside` say why.
        effort: of the real path (None: as calibrated, and the named operating points are timed too).
    """
    manifest, target = bundle.manifest, bundle.manifest.target
    described = partial(
        environment,
        runtime=manifest.backend,
        runtime_version=runtime_version,
        inference_precision=target.inference_precision,
        threads=threads,
        cpus=cpus,
    )
    if emulator() is not None:  # it has neither the times nor the memory of a device
        before = snapshot()
        gates, tokens = _watch(manifest, runner, images, effort)
        machine = described(before, snapshot())
        return make_measurement(bundle, machine, used, gates, golden=golden, tokens=tokens, effort=effort)
    settings: dict[str, Any] = {
        "threads": threads,
        "precision": target.inference_precision,
        "weight_bits": target.weight_bits,
    }
    model, efforts = bundle.folder / manifest.model, timed_efforts(manifest, effort)
    few = images[:TRACED_IMAGES]
    probe = _probe(backend, model, few, list(path_efforts(manifest, effort).values()), **settings)
    before = snapshot()
    timed = images[timed_images(len(images), runs)]
    timings = time_paths(runner, timed, efforts, runs, beside=beside)
    after = snapshot(since=before)
    gates, tokens = _watch(manifest, runner, images, effort)
    branches = [branch.name for branch in manifest.branches]
    gated = [branch.name for branch in manifest.branches if branch.gated]
    trace = trace_local(backend, model, few, branches=branches, gated=gated, **settings)
    times = Times(
        images=len(timed),
        paths={path: timings[path] for path in efforts},
        trace=trace,
        probe=probe,
        baselines=tuple(timed_baseline(each, timings.get(each.name)) for each in baselines),
    )
    machine = described(before, after)
    return make_measurement(bundle, machine, used, gates, golden=golden, times=times, tokens=tokens, effort=effort)


def _watch(
    manifest: Manifest, runner: Runner, images: NDArray[np.uint8], effort: float | None
) -> tuple[NDArray[np.uint8], list[list[int]]]:
    """Return of every image on the real path the gates, uint8 `[images, branches]`, and the tokens where it has some.

    Those are patch tokens left after each point where they merge.
    """
    run = runner.answer if counts_tokens(manifest) else runner.run
    gates, tokens = [], []
    for image in track(images, "Watching the gates"):
        answer = run(image[None], effort or 0.0)
        gates.append(answer[1])
        tokens += [left.tolist() for left in answer[2:]]
    return np.stack(gates), tokens


def _probe(backend: str, model: Path, images: NDArray[np.uint8], efforts: list[float], **settings: Any) -> Probe:
    """Return a fresh process with the model: the program that a bundle of machine code ships, or this Python."""
    if importlib.import_module(backend).NATIVE:
        return probe_runner(backend, model, images[:1], efforts, threads=settings["threads"])
    return probe_local(backend, model, images, efforts, **settings)


def timed_images(images: int, runs: int) -> slice:
    """Those of so many images that are timed: spread over all, and few enough to be run RUNS_PER_IMAGE times each."""
    return slice(None, None, max(1, math.ceil(RUNS_PER_IMAGE * images / runs)))


def time_paths(
    runner: Runner,
    images: NDArray[np.uint8],
    efforts: Mapping[str, float],
    runs: int,
    *,
    beside: Mapping[str, Runner] | None = None,
) -> dict[str, Timing]:
    """Time every path `runs` times, interleaved round-robin: each round runs the paths one after the other.

    Models `beside` it take turns with it, see `taking_turns`, and are in the answer by their names.
    """
    rows: dict[str, list[TimedRun]] = defaultdict(list)
    others = beside or {}
    order = taking_turns(timed_order(len(images), tuple(efforts), runs), len(efforts), tuple(others))
    for path, index, counts in track(order, f"Timing {len(efforts) + len(others)} paths, {runs} rounds"):
        image, model, effort = images[index : index + 1], others.get(path, runner), efforts.get(path, 0.0)
        cpu, wall = time.process_time(), time.perf_counter()
        _, gates = model.run(image, effort=effort)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if counts:
            rows[path].append((1000 * wall, 1000 * cpu, index, gates))
    return {path: timing(timed) for path, timed in rows.items()}


def timed_order(images: int, paths: Sequence[P], runs: int) -> list[tuple[P, int, bool]]:
    """(path, image, whether it counts) of every run: first those that warm up, then round-robin over the paths."""
    warm_up: list[tuple[P, int, bool]] = [(path, 0, False) for path in paths] * WARM_UP_ROUNDS
    return warm_up + [(path, index % images, True) for index in range(runs) for path in paths]


def taking_turns(order: Sequence[Turn], paths: int, others: Sequence[str]) -> list[Turn]:
    """Return the order with other models' runs between TURN rounds of the paths, as many of each as there are rounds.

    Whoever's turn begins runs once without counting: what the one before left in the caches is not its cost.
    """
    if not others:
        return list(order)
    warm, counted = order[: WARM_UP_ROUNDS * paths], order[WARM_UP_ROUNDS * paths :]
    found = [*warm, *((name, 0, False) for name in others for _ in range(WARM_UP_ROUNDS))]
    for begin in range(0, len(counted), TURN * paths):
        turn = list(counted[begin : begin + TURN * paths])
        found += [(path, index, False) for path, index, _ in turn[:paths]] + turn
        images = [index for _, index, _ in turn[::paths]]
        for name in others:
            found += [(name, images[0], False), *((name, index, True) for index in images)]
    return found
