"""The figures of one build on one device that a comparison sets side by side, each with what it was taken under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from edgevit.report import text as say
from edgevit.schema.manifest import AccuracyRow, Manifest
from edgevit.schema.measurement import Measurement
from edgevit.schema.points import effort_text

Unit = Literal["ms", "bytes", "count", "share"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure; None: not known.

    `name` is what `--fail-if` takes, `less` whether less of it is better. Two values may be compared where
    `conditions`, as far as both have them, are the same.
    """

    name: str
    title: str
    unit: Unit
    less: bool = True
    value: float | None = None
    conditions: dict[str, str] = field(default_factory=dict)


# Every figure there is, in the order in which they are shown where nothing tells them apart.
FIGURES = (
    Figure(name="latency", title="time of an image, expected", unit="ms"),
    Figure(name="p95", title="time of an image, 95th percentile", unit="ms"),
    Figure(name="latency_all_open", title="time with every branch open", unit="ms"),
    Figure(name="load", title="loading", unit="ms"),
    Figure(name="process", title="memory of the process", unit="bytes"),
    Figure(name="memory", title="memory bound of the model", unit="bytes"),
    Figure(name="size", title="size of the model", unit="bytes"),
    Figure(name="top1", title="top-1", unit="share", less=False),
    Figure(name="agreement", title="agreement", unit="share", less=False),
    Figure(name="lost", title="top-1 lost against the original", unit="share"),
    Figure(name="macs", title="MACs of an image, expected", unit="count"),
    Figure(name="macs_all_open", title="MACs with every branch open", unit="count"),
    Figure(name="parameters", title="parameters", unit="count"),
)
OWN_FLOAT = "with its own float model"
NAMES = tuple(figure.name for figure in FIGURES)

# Value and conditions.
Found = tuple[float | None, dict[str, str]]


def figures(manifest: Manifest | None, measurement: Measurement | None) -> tuple[Figure, ...]:
    """Return every figure of a build, of a measurement of it, or of both; what neither tells has no value."""
    found: dict[str, Found] = dict(_built(manifest)) if manifest is not None else {}
    if measurement is not None:
        found |= dict(_measured(measurement, manifest))
    return tuple(
        replace(f, title=_title(f, conditions), value=value, conditions=conditions)
        for f in FIGURES
        for value, conditions in [found.get(f.name, (None, {}))]
    )


def _title(figure: Figure, conditions: dict[str, str]) -> str:
    """Return what a figure is called; of an agreement also with what."""
    return f"{figure.title} {conditions.get('agreement', '')}".rstrip() if figure.name == "agreement" else figure.title


def shown(figure: Figure, value: float | None) -> str:
    """Return a value of a figure with its unit."""
    if value is None:
        return say.UNKNOWN
    show = {"ms": say.ms, "bytes": say.size, "count": say.count, "share": say.percent}
    return show[figure.unit](value)


def _built(manifest: Manifest) -> Iterator[tuple[str, Found]]:
    proven = "proven" if manifest.bound.proven else "of the graph's tensors only"
    yield "memory", (manifest.bound.bound_bytes, {"memory": proven})
    yield "size", (manifest.sizes.model_bytes, {})
    yield "macs", (manifest.macs.expected, {})
    yield "macs_all_open", (manifest.macs.all_open, {})
    yield "parameters", (manifest.sizes.parameters, {})
    classes = str(next((output.shape[-1] for output in manifest.outputs if output.name == "logits"), ""))
    top1, original = _row(manifest, "bundle", "top1"), _row(manifest, "original", "top1")
    if top1 is not None:
        under = {"images": f"{top1.images} labelled images", "classes": classes}
        yield "top1", (top1.value, under)
        if original is not None:
            yield "lost", (original.value - top1.value, under)
    agreed = _row(manifest, "bundle", "agreement", "original") or _row(manifest, "bundle", "agreement")
    if agreed is not None:
        other = "with the original" if agreed.against == "original" else OWN_FLOAT
        under = {"images": f"{agreed.images} images", "classes": classes, "agreement": other}
        yield "agreement", (agreed.value, under)


def _row(manifest: Manifest, model: str, metric: str, against: str = "float") -> AccuracyRow | None:
    wanted = (model, metric, against, "real")
    return next((row for row in manifest.accuracy if (row.model, row.metric, row.against, row.path) == wanted), None)


def _measured(measurement: Measurement, manifest: Manifest | None) -> Iterator[tuple[str, Found]]:
    machine, alone = measurement.environment, measurement.environment.threads == 1
    device = f"{machine.cpu}{', emulated' if machine.emulated_by else ''}"
    clock = "CPU time" if alone else "wall time"
    under = {"device": device, "threads": str(machine.threads), "clock": clock}
    # Where every image costs the same it does not matter which were timed.
    gated = len(measurement.paths) > 1 if manifest is None else manifest.effort is not None
    seen = "the golden inputs" if measurement.images.golden else f"images {measurement.images.digest[:8]}"
    real = {**under, "images": seen, "effort": effort_text(measurement.effort)} if gated else under
    yield "latency", (measurement.expected_cpu_ms if alone else measurement.expected_wall_ms, real)
    for path in measurement.paths:
        times = path.cpu if alone else path.wall
        if path.path == "real":
            yield "p95", (times.p95_ms, real)
        elif path.path == "all_open":
            yield "latency_all_open", (times.median_ms, under)
    if not gated:
        yield "latency_all_open", (measurement.expected_cpu_ms if alone else measurement.expected_wall_ms, under)
    yield "load", (measurement.load_ms, {"device": device})
    if measurement.process is not None:
        yield "process", (measurement.process.peak_bytes, {"device": device})
