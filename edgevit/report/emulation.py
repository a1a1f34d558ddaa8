"""What emulated processors told, side by side: one row per processor and path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgevit.report import text as say
from edgevit.schema.measurement import Emulation, Measurement

# Narrow enough for a terminal of 80 columns; loads, stores and branches are in the JSON.
HEAD = ("processor", "path", "open", "total", "float", "dot", "matrix", "widen")
CLASSES = ("multiply_add", "dot", "matrix", "widening")
MEANING = "float: multiply-adds; dot, matrix, widen: int8 products of four, eight and one per lane"


def emulated(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Return those made on an emulated processor by edgevit itself."""
    return tuple(m for m in measurements if m.emulation is not None)


def rows(measurements: Sequence[Measurement]) -> Iterator[list[str]]:
    """Yield executed instructions per inference, as `HEAD` names the columns."""
    for measurement in emulated(measurements):
        assert measurement.emulation
        for path in measurement.emulation.instructions:
            yield [
                measurement.emulation.cpu,
                say.PATH_NAMES[path.path],
                f"{path.branches_open:.1f}",
                say.count(path.total),
                *(say.count(path.classes[name]) if path.classes.get(name) else say.UNKNOWN for name in CLASSES),
            ]


def notes(measurement: Measurement) -> Iterator[str]:
    """Yield results, skipping and memory of one processor, a sentence each; then its warnings."""
    emulation = measurement.emulation
    assert emulation
    where = f"{emulation.cpu}, emulated by {emulation.emulator}"
    yield f"{where}: {_parity(emulation)}"
    yield f"skipping: {emulation.skip}" if emulation.skip else f"instructions not counted: {emulation.uncounted}"
    if emulation.arena_peak_bytes is not None:
        limit = f", bound {say.size(emulation.arena_bytes)}" if emulation.arena_bytes else ""
        yield f"arena peak {say.size(emulation.arena_peak_bytes)}{limit}"
    yield _heap(emulation)
    yield from _estimate(emulation)
    yield from (f"warning: {warning}" for warning in measurement.warnings)


def _heap(emulation: Emulation) -> str:
    if emulation.heap is None:
        return f"heap not counted{_why(emulation.unaccounted)}"
    running, loading = say.size(emulation.heap.running_bytes), say.size(emulation.heap.loading_bytes)
    limit = f"; memory bound {say.size(emulation.bound_bytes)}, without the runtime" if emulation.bound_bytes else ""
    return f"heap peak {running} running, {loading} loading, runtime included{limit}"


def _estimate(emulation: Emulation) -> Iterator[str]:
    """Yield the range of cycles per path, and what it rests on."""
    estimate = emulation.estimate
    if estimate is None:
        yield f"cycles not estimated{_why(emulation.unestimated)}"
        return
    ranges = (
        f"{say.PATH_NAMES[path.path]} {say.count(path.lower_cycles)} to {say.count(path.upper_cycles)}"
        for path in estimate.paths
    )
    yield f"cycles per image, an estimate and no measurement, by {estimate.tool}: {', '.join(ranges)}"
    yield from estimate.assumptions


def _why(reason: str) -> str:
    """Return a measurement of an older edgevit has no reason."""
    return f": {reason}" if reason else ""


def _parity(emulation: Emulation) -> str:
    if not emulation.golden:
        return "no golden outputs to hold it against"
    largest = max(emulation.golden, key=lambda case: case.logit_error)
    return (
        f"golden outputs of {len(emulation.golden)} paths reproduced, logits within "
        f"{largest.logit_error:.3g} ({largest.allowed:.3g} allowed)"
    )
