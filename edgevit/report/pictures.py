"""The pictures of the report's page, one function each: data in, inline SVG out."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.report import text as say
from edgevit.report.memory_view import MemoryView
from edgevit.report.svg import Scale, dot, element, line, picture, rect, text
from edgevit.report.view import BranchRow, Report
from edgevit.schema.manifest import AccuracyRow
from edgevit.schema.measurement import MemoryPoint, PathLatency
from edgevit.schema.memory_bound import MemoryBound

SCRATCH = {"tvm": "state and stack"}  # what its scratch is for, by runtime
WIDE, NARROW = 920.0, 340.0  # of a page on a desk and on a phone, in pixels
PHONE = 600.0  # below this, words make room for marks
DOT = 2.2
WIDEST_SLOT = 60.0
MOST_TIPS, MOST_DOTS = 160, 400
GOLDEN_RATIO = 0.6180339887
MODEL_NAMES = {
    "original": "original",
    "compressed": "compressed, float",
    "bundle": "this bundle",
}


def memory_over_run(memory: MemoryView, wide: float = WIDE) -> str:
    """Return bytes in use over one all-open run as steps, under the line of the bound.

    Where weights are most of it the axis starts above zero, and says so: their share is in the bar of the bound.
    """
    highest = max(memory.limit_bytes or 0, memory.peak_bytes)
    lowest = min(point.bytes for point in memory.points)
    zoomed = lowest > 0.5 * highest
    margin = 0.25 * (highest - lowest if zoomed else highest)
    end_ms = memory.points[-1].time_ms
    height, left, right, top, bottom = 300.0, 62.0, wide - 8, 14.0, 246.0
    small = wide < PHONE
    x = Scale(top=end_ms, begin=left, end=right)
    y = Scale(low=(lowest - margin) / 1e6 if zoomed else 0.0, top=(highest + margin) / 1e6, begin=bottom, end=top)
    parts = [*y_axis(y, left, right, "MB")]
    start = "; the axis starts above zero" if zoomed else ""
    for index, span in enumerate(memory.spans):
        width = x(span.end_ms) - x(span.begin_ms)
        parts.append(rect(x(span.begin_ms), top, width, bottom - top, "band" if index % 2 else "none"))
        if width > 7.5 * len(span.label):
            parts.append(text(x(span.begin_ms) + width / 2, bottom + 15, span.label, anchor="middle", class_="tick"))
    if memory.spans:
        order = "stem, blocks, head in order" if small else "stem, blocks and head in the order they run"
        parts.append(text(left, bottom + 33, order + ("" if small else start), class_="note"))
    else:
        parts += [
            text(x(tick), bottom + 15, f"{tick:g}", anchor="middle", class_="tick")
            for tick in x.ticks
            if tick <= end_ms
        ]
        since = "ms since the process started importing"
        parts.append(text(left, bottom + 33, since + ("" if small else start), class_="note"))
    path = _steps(memory.points, x, y)
    if not zoomed:
        parts.append(element("path", d=f"{path} V{bottom:.1f} H{x(memory.points[0].time_ms):.1f} Z", class_="area"))
    parts.append(element("path", d=path, class_="curve"))
    parts += _peak(memory, x, y, (left + right) / 2, small=small)
    if memory.limit_bytes:
        limit = y(memory.limit_bytes / 1e6)
        parts.append(line(left, limit, right, limit, "bound"))
        parts.append(text(right, limit - 7, f"bound {say.size(memory.limit_bytes)}", anchor="end", class_="label bad"))
    if small and zoomed:
        parts.append(text(left, bottom + 48, "the axis starts above zero", class_="note"))
    if memory.of == "runtime" and not small:
        parts.append(text(right, bottom + 33, f"one run, {say.ms(end_ms)} while traced", anchor="end", class_="note"))
    label = f"Memory over one all-open run: peak {say.size(memory.peak_bytes)}"
    parts += _hits(memory, x, y, top, bottom)
    return picture(wide, height, label, parts)


def _hits(memory: MemoryView, x: Scale, y: Scale, top: float, bottom: float) -> list[str]:
    """Return what is under the pointer: a strip per moment, with what runs there and what is held."""
    points, parts = memory.points, []
    step = max(1, len(points) // MOST_TIPS)
    for index in range(0, len(points), step):
        point, after = points[index], points[min(index + step, len(points) - 1)]
        title = f"{point.where}: {say.size(point.bytes)} at {say.ms(point.time_ms)}"
        left = x(point.time_ms)
        parts.append(rect(left, top, max(x(after.time_ms) - left, 0.5), bottom - top, "hit", title=title))
    return parts


def _peak(memory: MemoryView, x: Scale, y: Scale, middle: float, *, small: bool) -> list[str]:
    """Return the highest point of the trace, named; its label stands above the curve, on the side with more room.

    Under the curve where the line of the bound would go through it.
    """
    peak = max(memory.points, key=lambda point: point.bytes)
    px, py = x(peak.time_ms), y(peak.bytes / 1e6)
    name = f"peak {say.size(peak.bytes)}{'' if small else f' at {peak.where}'}"
    end = px > middle
    under = memory.limit_bytes is not None and 0 <= py - y(memory.limit_bytes / 1e6) < 22
    return [
        element("circle", cx=px, cy=py, r=4, class_="peak"),
        text(
            px + (-9 if end else 9),
            py + 18 if under else py - 5,
            name,
            anchor="end" if end else "start",
            class_="label halo",
        ),
    ]


def memory_parts(bound: MemoryBound, runtime: str, wide: float = WIDE) -> str:
    """Return what the bound is made of, as one stacked bar, above the measured peak of the arena."""
    pieces = [
        ("weights", bound.weights_bytes, "c1"),
        ("activations", bound.activations_bytes, "c2"),
        (SCRATCH.get(runtime, "packing copies at load"), bound.scratch_bytes, "c3"),
        ("gaps between buffers", bound.fragmentation_bytes, "c4"),
        ("input and output", bound.io_bytes, "c5"),
    ]
    shown = [piece for piece in pieces if piece[1]]
    x = Scale(top=max(bound.bound_bytes, sum(p[1] for p in shown)), begin=0, end=wide)
    parts, at = [], 0.0
    for name, size_bytes, class_ in shown:
        title = f"{name}: {say.size(size_bytes)}"
        parts.append(rect(x(at), 4, max(x(size_bytes) - 1.5, 1), 26, class_, title=title, radius=3))
        at += size_bytes
    per_row = len(shown) if wide >= PHONE else 1
    for index, (name, size_bytes, class_) in enumerate(shown):
        left, top = (index % per_row) * wide / per_row, 44 + 20 * (index // per_row)
        parts.append(rect(left, top, 10, 10, class_, radius=2))
        parts.append(text(left + 16, top + 9, f"{name} {say.size(size_bytes)}", class_="label"))
    height = 60 + 20 * ((len(shown) - 1) // per_row)
    return picture(wide, height, f"Parts of the memory bound of {say.size(bound.bound_bytes)}", parts)


def latency_by_path(paths: Sequence[PathLatency], wide: float = WIDE, *, gated: bool = True) -> str:
    """Return every run as a dot, one lane per path, with its median and what percentile n supports."""
    left, right, lane = (128.0 if wide >= PHONE else 112.0), wide - 8, 74.0
    bottom = 8 + lane * len(paths)
    # A few runs that something else held up would squeeze all others; they are counted in the lane's caption.
    slowest = max(sorted(path.wall.samples_ms)[int(0.95 * (path.wall.runs - 1))] for path in paths)
    x = Scale(top=1.3 * slowest, begin=left, end=right)
    parts = [line(x(tick), 8, x(tick), bottom, "grid") for tick in x.ticks]
    parts += [text(x(tick), bottom + 16, f"{tick:g}", anchor="middle", class_="tick") for tick in x.ticks]
    parts.append(text(right, bottom + 34, "ms wall time per image", anchor="end", class_="note"))
    for index, path in enumerate(paths):
        parts += _lane(path, x, 8 + lane * index, lane, left, right, gated)
    label = "; ".join(f"{say.path(p.path, gated)}: median {say.ms(p.wall.median_ms)}" for p in paths)
    return picture(wide, bottom + 42, f"Latency per path. {label}", parts)


def _lane(path: PathLatency, x: Scale, top: float, height: float, left: float, right: float, gated: bool) -> list[str]:
    middle = top + height / 2 + 8
    parts = [
        line(left, top + height, right, top + height, "grid"),
        text(left - 12, middle, say.path(path.path, gated), anchor="end", class_="label strong"),
    ]
    if gated:
        parts.append(text(left - 12, middle + 15, f"{path.branches_open:.1f} open", anchor="end", class_="note"))
    beyond = 0
    step = max(1, len(path.wall.samples_ms) // MOST_DOTS)
    for index, sample in enumerate(path.wall.samples_ms):
        if sample > x.top:
            beyond += 1
            continue
        if index % step:
            continue
        jitter = ((index * GOLDEN_RATIO) % 1 - 0.5) * (height - 40)
        parts.append(dot(x(sample), middle + jitter, DOT, f"dot {path.path}", f"run {index + 1}: {say.ms(sample)}"))
    median = x(path.wall.median_ms)
    parts.append(line(median, top + 22, median, top + height - 5, "median"))
    caption = f"median {say.ms(path.wall.median_ms)}"
    small = right - left < PHONE
    if path.wall.p90_ms is not None and not small:
        caption += f" · p90 {say.ms(path.wall.p90_ms)}"
    if beyond and not small:
        caption += f" · {beyond} of {path.wall.runs} runs beyond, up to {say.ms(path.wall.max_ms)}"
    end = median > (left + right) / 2
    parts.append(text(median, top + 16, caption, anchor="end" if end else "start", class_="label halo"))
    return parts


def open_rates(branches: Sequence[BranchRow], wide: float = WIDE) -> str:
    """Return how often every branch runs: one bar per branch, in order, grouped by block."""
    left, right, top, bottom = 46.0, wide - 8, 34.0, 190.0
    slot = min((right - left) / len(branches), WIDEST_SLOT)
    right = left + slot * len(branches)
    y = Scale(top=1.0, begin=bottom, end=top)
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(left, y(tick), right, y(tick), "grid"))
        parts.append(text(left - 8, y(tick) + 4, f"{100 * tick:.0f} %", anchor="end", class_="tick"))
    gap = min(3.0, 0.12 * slot)
    for index, row in enumerate(branches):
        x = left + index * slot
        rate = say.percent(row.open_rate, 0)
        state = {"always": "always on", "removed": "removed"}.get(row.open_rate_source, f"open on {rate} of the images")
        class_ = "always" if row.open_rate_source == "always" else row.kind
        parts.append(rect(x + gap, top, slot - 2 * gap, bottom - top, "slot", title=f"{row.name}: {state}", radius=2))
        bar = y(0) - y(row.open_rate)
        parts.append(
            rect(x + gap, y(row.open_rate), slot - 2 * gap, bar, class_, title=f"{row.name}: {state}", radius=2)
        )
        if row.open_rate_source == "removed":
            parts.append(text(x + slot / 2, bottom - 6, "×", anchor="middle", class_="tick"))
        elif slot > 26 and row.gated:
            height = y(row.open_rate) - 4
            parts.append(text(x + slot / 2, height, f"{100 * row.open_rate:.0f}", anchor="middle", class_="tick"))
    parts += _block_names(branches, left, slot, bottom + 16)
    removed = "× removed: no unit left" if wide >= PHONE else "× removed"
    parts += _legend([("MHSA", "mhsa"), ("FFN", "ffn"), ("always on", "always"), (removed, "none")], left, 14)
    return picture(wide, bottom + 40, "Share of the images on which each branch runs", parts)


def _block_names(branches: Sequence[BranchRow], left: float, slot: float, y: float) -> list[str]:
    parts = []
    for block in sorted({row.block for row in branches}):
        inside = [index for index, row in enumerate(branches) if row.block == block]
        begin, end = left + inside[0] * slot, left + (inside[-1] + 1) * slot
        parts.append(text((begin + end) / 2, y, str(block), anchor="middle", class_="tick"))
        if inside[0]:
            parts.append(line(begin, y - 14, begin, y + 2, "grid"))
    parts.append(text(left, y + 18, "block", class_="note"))
    return parts


def accuracy(rows: Sequence[AccuracyRow], wide: float = WIDE) -> str:
    """Return every measured fraction as a point with its 95 % interval."""
    small = wide < PHONE
    left, right, lane, top = (22.0, wide - 22, 56.0, 6.0) if small else (290.0, wide - 210, 34.0, 10.0)
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    begin = max(0.0, (int(low * 20) - 1) / 20)
    end = min(1.0, (int(high * 20) + 2) / 20)
    x = Scale(low=begin, top=end, begin=left, end=right)
    bottom = top + lane * len(rows)
    parts = []
    for tick in x.ticks:
        parts.append(line(x(tick), top, x(tick), bottom, "grid"))
        parts.append(text(x(tick), bottom + 16, f"{100 * tick:.0f} %", anchor="middle", class_="tick"))
    for index, row in enumerate(rows):
        y = top + lane * (index + (0.75 if small else 0.5))
        name = f"{say.metric(row)}, {MODEL_NAMES[row.model]}"
        if row.path != "real":
            name += f", {say.PATH_NAMES[row.path]}"
        if small:
            parts.append(text(0, y - 26, name, class_="label"))
            parts.append(text(0, y - 12, say.interval(row), class_="note"))
        else:
            parts.append(text(left - 14, y + 4, name, anchor="end", class_="label"))
            parts.append(text(right + 14, y + 4, say.interval(row), class_="label"))
        parts.append(line(x(row.low), y, x(row.high), y, f"whisker {_tone(row)}"))
        parts.append(dot(x(row.value), y, 5, f"point {_tone(row)}", f"{name}: {say.interval(row)}"))
    label = "; ".join(f"{row.model} {say.metric(row)} {say.percent(row.value)}" for row in rows)
    return picture(wide, bottom + 24, f"Accuracy with 95 % intervals: {label}", parts)


def _tone(row: AccuracyRow) -> str:
    return "before" if row.model == "original" else "after"


def size_and_macs(report: Report, wide: float = WIDE) -> str:
    """Return the size and multiply-accumulates before and after, as pairs of bars."""
    sizes = [
        ("float32, dense", report.size_change.before, say.size(report.size_change.before), "before"),
        (
            "this bundle",
            report.size_change.after,
            _with_ratio(say.size, report.size_change.after, report.size_change.ratio),
            "after",
        ),
    ]
    change, expected = report.macs_change, report.expected_macs_change
    macs = [
        ("dense", change.before, say.count(change.before), "before"),
        ("all open", change.after, _with_ratio(say.count, change.after, change.ratio), "after"),
    ]
    if report.gated_branches:
        macs += [
            ("expected", expected.after, _with_ratio(say.count, expected.after, expected.ratio), "after"),
            ("all skipped", float(report.macs.all_skipped), say.count(report.macs.all_skipped), "after"),
        ]
    elif report.tokens is not None:
        macs[-1] = ("most tokens", *macs[-1][1:])
        macs += [
            ("expected", expected.after, _with_ratio(say.count, expected.after, expected.ratio), "after"),
            ("fewest tokens", float(report.macs.all_skipped), say.count(report.macs.all_skipped), "after"),
        ]
    if wide < PHONE:  # one below the other
        below = 40.0 + 30 * len(sizes)
        parts = [*_bars("Size on the device", sizes, 0.0, wide), *_bars("MACs per image", macs, 0.0, wide, below)]
        return picture(wide, below + 30 + 30 * len(macs), "Size and MACs before and after", parts)
    parts = [
        *_bars("Size on the device", sizes, 0.0, wide / 2),
        *_bars("MACs per image", macs, wide / 2, wide / 2),
    ]
    return picture(wide, 30 + 30 * max(len(sizes), len(macs)), "Size and MACs before and after", parts)


def _with_ratio(unit: object, value: float, ratio: float) -> str:
    assert callable(unit)
    return f"{unit(value)} · {say.percent(ratio, 0)}"


def _bars(
    title: str, rows: Sequence[tuple[str, float, str, str]], left: float, room: float, top: float = 0.0
) -> list[str]:
    """Draw bars with a name and a value each, in the `room` to the right of `left`."""
    x = Scale(top=max(row[1] for row in rows), begin=left + 100, end=left + room - (150 if room > 400 else 115))
    parts = [text(left, top + 12, title, class_="label strong")]
    for index, (name, value, shown, class_) in enumerate(rows):
        y = top + 24 + 30 * index
        parts.append(text(left + 90, y + 15, name, anchor="end", class_="label"))
        width = max(x(value) - left - 100, 1.5)
        parts.append(rect(left + 100, y, width, 21, class_, title=f"{name}: {shown}", radius=3))
        parts.append(text(x(value) + 8, y + 15, shown, class_="label"))
    return parts


def _legend(entries: Sequence[tuple[str, str]], left: float, y: float) -> list[str]:
    parts, at = [], left
    for name, class_ in entries:
        if class_ != "none":
            parts.append(rect(at, y - 9, 10, 10, class_, radius=2))
            at += 15
        parts.append(text(at, y, name, class_="label"))
        at += 6.6 * len(name) + 22
    return parts


def y_axis(y: Scale, left: float, right: float, unit: str) -> list[str]:
    parts = []
    for tick in y.ticks:
        parts.append(line(left, y(tick), right, y(tick), "grid"))
        parts.append(text(left - 8, y(tick) + 4, f"{tick:g} {unit}", anchor="end", class_="tick"))
    return parts


def _steps(points: Sequence[MemoryPoint], x: Scale, y: Scale) -> str:
    """Return a path that holds each value until the next point."""
    first = points[0]
    moves = [f"M{x(first.time_ms):.1f} {y(first.bytes / 1e6):.1f}"]
    moves += [f"H{x(point.time_ms):.1f} V{y(point.bytes / 1e6):.1f}" for point in points[1:]]
    return " ".join(moves)
