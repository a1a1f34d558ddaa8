"""The page's pictures with the figures that they draw: a report in, by name what to show and to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from edgevit.report import charts, pictures
from edgevit.report import text as say
from edgevit.report.cards import Picture, picture, table
from edgevit.report.pictures import NARROW, WIDE
from edgevit.report.tree import tree
from edgevit.report.view import Report
from edgevit.schema.manifest import TokenUse
from edgevit.schema.measurement import Measurement
from edgevit.schema.points import effort_text

Rows = Iterable[Sequence[object]]


def figures(report: Report) -> dict[str, Picture]:
    """Return every picture that the report has the figures of, by name."""
    found = dict(_built(report))
    first = report.measurements[0] if report.measurements else None
    timed = next((m for m in report.measurements if m.paths), None)
    if report.memory:
        found["memory-over-run"] = _drawn(
            "memory-over-run",
            partial(pictures.memory_over_run, report.memory),
            ("ms", "bytes", "at"),
            ((point.time_ms, point.bytes, point.where) for point in report.memory.points),
        )
    if timed:
        found["latency"] = _latency(timed, report.gated_branches > 0)
    if first and first.gates and report.gated_branches and len(set(first.gates)) > 1:
        found["cost-per-image"] = _cost(report, first)
    if first and report.tokens is not None and len(set(first.tokens)) > 1:
        found["tokens-per-image"] = _tokens(report.tokens, first)
    if any(row.time_ms is not None and not row.ours for row in report.speed):
        found["speed"] = _drawn(
            "speed",
            partial(charts.speed, report.speed),
            ("model", "runtime", "ms", "times this build"),
            ((row.name, row.runtime, row.time_ms, row.ratio) for row in report.speed),
        )
    return found


def _built(report: Report) -> Iterable[tuple[str, Picture]]:
    """Yield pictures of what the build itself says."""
    rows: Rows
    bound = report.bound
    parts = ("weights", "activations", "scratch", "fragmentation", "io")
    yield (
        "memory-bound",
        _drawn(
            "memory-bound",
            partial(pictures.memory_parts, bound, report.runtime),
            ("part", "bytes"),
            ((part, getattr(bound, f"{part}_bytes")) for part in parts),
        ),
    )
    if report.gated_branches:
        rows = ((row.name, row.kind, row.open_rate, row.macs) for row in report.branches)
        draw = partial(pictures.open_rates, report.branches)
        yield "open-rates", _drawn("open-rates", draw, ("branch", "kind", "runs on", "MACs"), rows)
    if any(row.error is not None for row in report.branches):
        rows = ((row.name, row.error) for row in report.branches)
        draw = partial(charts.branch_errors, report.branches)
        yield "branch-errors", _drawn("branch-errors", draw, ("branch", "error after it"), rows)
    if report.accuracy:
        rows = ((r.model, say.metric(r), r.path, r.value, r.low, r.high, r.images) for r in report.accuracy)
        head = ("model", "metric", "path", "value", "low", "high", "images")
        yield "accuracy", _drawn("accuracy", partial(pictures.accuracy, report.accuracy), head, rows)
    changes = (
        ("size, bytes", report.size_change),
        ("MACs, all open", report.macs_change),
        ("MACs, expected", report.expected_macs_change),
    )
    yield (
        "size-and-macs",
        _drawn(
            "size-and-macs",
            partial(pictures.size_and_macs, report),
            ("", "before", "after"),
            ((name, change.before, change.after) for name, change in changes),
        ),
    )
    if len([point for point in report.efforts if point.accuracy is not None]) > 1:
        built = ("point", "effort", "mean MACs", "most MACs", "branches", report.effort_metric, "images")
        rows = (
            (p.name, effort_text(p.effort), p.macs, p.worst_macs, p.branches, p.accuracy, p.images, *p.times)
            for p in report.efforts
        )
        yield "effort", _drawn("effort", partial(charts.effort, report), (*built, "expected ms", "most ms"), rows)
    if report.files:
        root = tree("bundle", [(file.path, file.bytes) for file in report.files])
        rows = ((node.path, node.bytes) for node in root.walk())
        yield "size-tree", _drawn("size-tree", partial(charts.size_tree, root), ("path", "bytes"), rows)


def _latency(timed: Measurement, gated: bool) -> Picture:
    rows = (
        (say.path(path.path, gated), index + 1, wall, cpu)
        for path in timed.paths
        for index, (wall, cpu) in enumerate(zip(path.wall.samples_ms, path.cpu.samples_ms, strict=True))
    )
    draw = partial(pictures.latency_by_path, timed.paths, gated=gated)
    return _drawn("latency", draw, ("path", "run", "wall ms", "CPU ms"), rows)


def _cost(report: Report, first: Measurement) -> Picture:
    draw = partial(charts.cost_per_image, report.branches, first.gates)
    order = f"ran, {report.branches[0].name} to {report.branches[-1].name}"
    rows = ((index, gates.count("1"), _ran(gates)) for index, gates in enumerate(first.gates))
    return _drawn("cost-per-image", draw, ("image", "branches", order), rows)


def _tokens(use: TokenUse, first: Measurement) -> Picture:
    draw = partial(charts.tokens_per_image, use, first.tokens)
    rows = ((index, *left) for index, left in enumerate(first.tokens))
    return _drawn("tokens-per-image", draw, ("image", *(f"after {point.after}" for point in use.points)), rows)


def _drawn(name: str, draw: Callable[[float], str], head: Sequence[str], rows: Rows) -> Picture:
    cells = [[_cell(value) for value in row] for row in rows]
    numbers = [i for i in range(len(head)) if cells and all(_number(row[i]) for row in cells)]
    return picture(name, draw(WIDE), draw(NARROW), table(head, cells, numbers=numbers, less=range(4, len(head))))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(text: str) -> bool:
    return not text.removesuffix("infinity").strip("0123456789.-+e")


def _ran(gates: str) -> str:
    """Return gates as text that no program takes for a number."""
    return gates.replace("1", "x").replace("0", ".")
