"""A Measurement as a few lines for a person."""

from __future__ import annotations

from collections.abc import Iterator

from edgevit.report import text as say
from edgevit.schema.measurement import Emulation, Measurement, PathLatency
from edgevit.schema.points import effort_text


def lines(measurement: Measurement) -> Iterator[str]:
    """Yield where it was made, one line per path, and what an image is expected to cost."""
    machine = measurement.environment
    if measurement.emulation is not None:
        yield from _emulated(measurement, measurement.emulation)
        return
    if measurement.not_the_device:
        yield (
            f"{'THIS MACHINE was measured, not a device: ' if measurement.device == 'local' else ''}"
            f"{measurement.not_the_device}"
        )
    if measurement.device != "local":
        held = f", pinned to CPUs {', '.join(map(str, machine.cpus))}" if machine.cpus is not None else ""
        yield (
            f"{machine.cpu} ({machine.arch}, {machine.cores} cores), {machine.runtime} {machine.runtime_version}, "
            f"{machine.threads} thread{'s' * (machine.threads > 1)}{held}"
        )
    for path in measurement.paths:
        name, ran = _ran(measurement, path)
        yield f"{name:<12} {path.wall.median_ms:8.2f} ms wall  {path.cpu.median_ms:8.2f} ms CPU  {ran}"
    yield from _points(measurement)
    yield from _beside(measurement)
    if measurement.golden and all(case.held for case in measurement.golden):
        worst = max(measurement.golden, key=lambda case: case.logit_error)
        yield f"golden outputs: reproduced, logits within {worst.logit_error:.3g} ({worst.allowed:.3g} allowed)"
    if measurement.expected_wall_ms is not None:
        yield f"{'expected':<12} {measurement.expected_wall_ms:8.2f} ms wall  {measurement.expected_cpu_ms:8.2f} ms CPU"
    else:
        mean = sum(branch.open_rate for branch in measurement.branches)
        yield f"times withheld; on average {mean:.1f} of {len(measurement.branches)} branches ran"


def _ran(measurement: Measurement, path: PathLatency) -> tuple[str, str]:
    """Return what a path is called, and what ran on it: of branches that all run tokens alone tell paths apart."""
    every = len(measurement.branches)
    if not measurement.tokens or any(each.branches_open < every for each in measurement.paths):
        return path.path, f"{path.branches_open:.1f} of {every} branches ran"
    means = (sum(point) / len(point) for point in zip(*measurement.tokens, strict=True))
    left = f"patch tokens left: {', '.join(f'{mean:.0f}' for mean in means)} on average"
    name = say.path(path.path, gated=False)
    return name, left if path.path == "real" else f"{name.removesuffix(' tokens')} patch tokens that the plan leaves"


def _points(measurement: Measurement) -> Iterator[str]:
    """Yield what an image takes at every operating point, and the one that takes most."""
    for point in measurement.points:
        yield (
            f"{point.name:<12} {point.expected_wall_ms:8.2f} ms wall  {point.expected_cpu_ms:8.2f} ms CPU  expected at "
            f"effort {effort_text(point.effort)}; at most {point.worst_wall_ms:.2f} and {point.worst_cpu_ms:.2f} ms"
        )


def _beside(measurement: Measurement) -> Iterator[str]:
    """Yield what was timed beside the bundle, and how many times as long it took."""
    alone = measurement.environment.threads == 1
    ours = measurement.expected_cpu_ms if alone else measurement.expected_wall_ms
    for other in measurement.baselines:
        if other.wall is None or other.cpu is None or not ours:
            yield f"not timed: {other.name}: {other.why}"
            continue
        ratio = (other.cpu if alone else other.wall).median_ms / ours
        yield (
            f"{other.name:<20} {other.wall.median_ms:8.2f} ms wall  {other.cpu.median_ms:8.2f} ms CPU  "
            f"{ratio:.2f} times the bundle's"
        )


def _emulated(measurement: Measurement, emulation: Emulation) -> Iterator[str]:
    """Yield what an emulated processor computed and executed, per path."""
    machine = measurement.environment
    yield (
        f"{emulation.cpu} emulated by {emulation.emulator}, {machine.runtime} {machine.runtime_version}, 1 thread; "
        "an emulator has no times"
    )
    for case in emulation.golden:
        within = f"{case.logit_error:.3g} ({case.allowed:.3g} allowed)"
        yield f"{case.path:<12} golden output: reproduced, logits within {within}"
    for path in emulation.instructions:
        largest = sorted(path.classes.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in largest if count and name != "other")
        yield (
            f"{path.path:<12} {path.total / 1e6:8.2f} M instructions  {path.branches_open:.1f} of "
            f"{len(measurement.branches)} branches ran  (M: {told})"
        )
    yield f"skipping: {emulation.skip}" if emulation.skip else f"instructions were not counted: {emulation.uncounted}"
    if emulation.arena_peak_bytes is not None:
        limit = f", bound {emulation.arena_bytes / 1e6:.2f} MB" if emulation.arena_bytes else ""
        yield f"arena peak {emulation.arena_peak_bytes / 1e6:.2f} MB{limit}"
    yield from _heap(emulation)
    yield from _estimate(emulation)


def _heap(emulation: Emulation) -> Iterator[str]:
    """Yield what the accountant counted, beside the bound."""
    heap = emulation.heap
    if heap is None:
        yield f"heap was not counted: {emulation.unaccounted}"
        return
    running, loading = (f"{held / 1e6:.2f} MB" for held in (heap.running_bytes, heap.loading_bytes))
    limit = f"; memory bound {emulation.bound_bytes / 1e6:.2f} MB, without the runtime" if emulation.bound_bytes else ""
    yield f"heap peak {running} running, {loading} loading, runtime included{limit}"


def _estimate(emulation: Emulation) -> Iterator[str]:
    """Yield the range of cycles, with what it rests on."""
    estimate = emulation.estimate
    if estimate is None:
        yield f"cycles were not estimated: {emulation.unestimated}"
        return
    for path in estimate.paths:
        low, high = (f"{cycles / 1e6:.1f}" for cycles in (path.lower_cycles, path.upper_cycles))
        yield f"{path.path:<12} estimate, not measured: {low} to {high} M cycles"
    yield f"estimated by {estimate.tool} from blocks that hold {estimate.covered:.1%} of the instructions"
    yield from (f"  {assumption}" for assumption in estimate.assumptions)
