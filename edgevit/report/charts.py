"""More pictures of the report's page: speed against baselines, accuracy over cost, cost per image, size as a tree."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.report import text as say
from edgevit.report.efforts import EffortPoint, timed
from edgevit.report.pictures import NARROW, PHONE, WIDE, y_axis
from edgevit.report.speed import SpeedRow
from edgevit.report.svg import Scale, dot, element, line, picture, rect, text
from edgevit.report.tree import Branch
from edgevit.report.view import BranchRow, Report
from edgevit.schema.manifest import TokenUse
from edgevit.schema.points import effort_text

__all__ = ["NARROW", "WIDE", "cost_per_image", "effort", "size_tree", "speed", "tokens_per_image"]
MOST_COLUMNS = 240  # of images: more are thinned, evenly


def speed(rows: Sequence[SpeedRow], wide: float = WIDE) -> str:
    """Return time of an image per model, from the slowest: what there was, and this build."""
    known = [row for row in rows if row.time_ms is not None]
    small = wide < PHONE
    left, lane = (0.0, 46.0) if small else (250.0, 34.0)
    x = Scale(top=max(row.time_ms or 0.0 for row in known), begin=left, end=wide - (110 if small else 170))
    parts = []
    for index, row in enumerate(known):
        y = 4 + lane * index
        value = row.time_ms or 0.0
        shown = say.ms(value) + (f", {row.ratio:.2f}×" if row.ratio is not None and not row.ours else "")
        title = f"{row.name}: {shown}{'' if row.ours or row.ratio is None else ' the time of this build'}"
        if small:
            parts.append(text(0, y + 11, row.name, class_="label"))
        else:
            parts.append(text(left - 10, y + 17, row.name, anchor="end", class_="label"))
        top = y + (16 if small else 2)
        width = max(x(value) - left, 1.5)
        parts.append(rect(left, top, width, 21, "after" if row.ours else "before", title=title, radius=3))
        parts.append(text(x(value) + 8, top + 15, shown, class_="label strong" if row.ours else "label"))
    return picture(wide, 8 + lane * len(known), "Time of an image, this build and what it is held against", parts)


def effort(report: Report, wide: float = WIDE) -> str:
    """Return accuracy over the time of an image, or over its MACs where that is not known; the dearest image's too.

    A point per effort: of the times only those that were measured.
    """
    by_time = timed(report.efforts)
    unit, scale = ("ms an image takes", 1.0) if by_time else ("million MACs of an image", 1e-6)
    points = [
        (p, p.accuracy, cost * scale, worst * scale)
        for p in report.efforts
        for cost, worst in [(p.time_ms, p.worst_ms) if by_time else (p.macs, p.worst_macs)]
        if p.accuracy is not None and cost is not None and worst is not None
    ]
    height, left, right, top, bottom = 286.0, 56.0, wide - 14, 44.0, 230.0
    shares = [share for _, share, _, _ in points]
    low = max(0.0, (int(min(shares) * 20) - 1) / 20)
    x = Scale(top=1.05 * max(worst for _, _, _, worst in points), begin=left, end=right)
    y = Scale(low=100 * low, top=100 * min(1.0, max(shares) + 0.03), begin=bottom, end=top)
    parts = [*y_axis(y, left, right, "%"), text(0, 14, report.effort_metric, class_="note")]
    for tick in x.ticks:
        parts.append(text(x(tick), bottom + 16, f"{tick:g}", anchor="middle", class_="tick"))
    parts.append(text(right, bottom + 33, unit, anchor="end", class_="note"))
    moves = (f"{'L' if i else 'M'}{x(cost):.1f} {y(100 * a):.1f}" for i, (_, a, cost, _) in enumerate(points))
    parts.append(element("path", d=" ".join(moves), class_="curve mean"))
    labels: list[tuple[float, float, str]] = []
    for point, share, cost, worst in points:
        px, py = x(cost), y(100 * share)
        parts.append(line(px, py, x(worst), py, "whisker before"))
        parts.append(dot(px, py, 6 if point.name else 4, "mark" if point.name else "mark plain", _effort_tip(point)))
        if point.name:
            labels.append((px, py, point.name))
    return picture(
        wide, height, f"{report.effort_metric} over the cost of an image, per effort", [*parts, *_named(labels, wide)]
    )


def _effort_tip(point: EffortPoint) -> str:
    """Return all that is known of a point, in words."""
    times = f", {say.ms(point.time_ms)} expected, at most {say.ms(point.worst_ms)}" if point.time_ms else ""
    return (
        f"{point.name or 'between'}: effort {effort_text(point.effort)}, {say.percent(point.accuracy)}, "
        f"{say.count(point.macs)} MACs on average, at most {say.count(point.worst_macs)}{times}"
    )


def _named(labels: Sequence[tuple[float, float, str]], wide: float) -> list[str]:
    """Return names of points, above them; those that would cover another one's stand below it, one under the other."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []  # begin, end, height of what was written
    for px, py, name in labels:
        half = 3.8 * len(name)
        at = min(max(px, half), wide - half)
        levels = (py - 11, *(py + 20 + 14 * step for step in range(len(labels))))
        free = (
            each
            for each in levels
            if all(at + half < begin or at - half > end or abs(each - other) > 12 for begin, end, other in taken)
        )
        level = next(free, levels[-1])
        taken.append((at - half, at + half, level))
        parts.append(text(at, level, name, anchor="middle", class_="label halo"))
    return parts


def tokens_per_image(use: TokenUse, tokens: Sequence[Sequence[int]], wide: float = WIDE) -> str:
    """Return how many patch tokens each image keeps: a row per point, a bar per image, from the cheapest image."""
    order = sorted(tokens, key=sum)
    step = max(1, -(-len(order) // MOST_COLUMNS))
    shown = order[::step]
    left, lane, room = 112.0, 54.0, 40.0
    slot = (wide - 8 - left) / len(shown)
    most = max(max(point.most for point in use.points), *(max(row) for row in order), 1)
    parts = []
    for row, point in enumerate(use.points):
        foot = 8 + lane * row + room
        parts.append(text(left - 8, foot - 16, f"after {point.after}", anchor="end", class_="tick"))
        parts.append(text(left - 8, foot - 2, f"{point.fewest} to {point.most}", anchor="end", class_="tick"))
        parts.append(line(left, foot, left + slot * len(shown), foot, "grid"))
        for column, kept in enumerate(shown):
            height = room * min(max(kept[row], 0), most) / most
            gap = 1.0 if slot > 4 else 0.0
            title = f"{kept[row]} tokens left after {point.after}"
            parts.append(rect(left + column * slot, foot - height, slot - gap, height, "mhsa", title=title))
    bottom = 8 + lane * len(use.points)
    parts.append(text(left, bottom + 12, "images, the cheapest first", class_="note"))
    return picture(wide, bottom + 20, f"Patch tokens left of each of {len(tokens)} images", parts)


def cost_per_image(branches: Sequence[BranchRow], gates: Sequence[str], wide: float = WIDE) -> str:
    """Return which branches ran for which image: a row per branch, a column per image, from the cheapest image."""
    order = sorted(gates, key=lambda row: row.count("1"))
    step = max(1, -(-len(order) // MOST_COLUMNS))
    shown = order[::step]
    left, top = 72.0, 8.0
    lane = min(12.0, max(7.0, 260.0 / len(branches)))
    slot = (wide - 8 - left) / len(shown)
    bottom = top + lane * len(branches)
    parts = []
    for row, branch in enumerate(branches):
        y = top + lane * row
        named = branch.name if lane >= 12 else f"block {branch.block}" if branch.kind == "mhsa" else ""
        if named:
            parts.append(text(left - 6, y + min(lane, 12) - 1, named, anchor="end", class_="tick"))
        parts.append(rect(left, y, slot * len(shown), lane - 1, "closed"))
        parts += _runs(branch, [gates_[row] == "1" for gates_ in shown], left, y, slot, lane)
    for tick in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[tick]
        at = left + tick * slot * len(shown)
        count = order[min(len(order) - 1, int(tick * len(order)))].count("1")
        parts.append(text(at, bottom + 15, f"{count} branches", anchor=anchor, class_="tick"))
    parts.append(text(left, bottom + 32, "images, the cheapest first", class_="note"))
    return picture(wide, bottom + 40, f"Branches that ran for each of {len(gates)} images", parts)


def _runs(branch: BranchRow, opened: Sequence[bool], left: float, y: float, slot: float, lane: float) -> list[str]:
    """Return one bar per run of images next to each other that a branch ran for."""
    parts, begin = [], None
    kind = "always" if branch.open_rate_source == "always" else branch.kind
    title = f"{branch.name}: ran for {say.percent(branch.open_rate, 0)} of the images"
    for index, ran in enumerate([*opened, False]):
        if ran and begin is None:
            begin = index
        elif not ran and begin is not None:
            parts.append(rect(left + begin * slot, y, (index - begin) * slot, lane - 1, kind, title=title))
            begin = None
    return parts


def branch_errors(branches: Sequence[BranchRow], wide: float = WIDE) -> str:
    """Return the error of the stream after every branch, in order: where a build departs from float."""
    known = [(index, row, row.error) for index, row in enumerate(branches) if row.error is not None]
    left, right, top, bottom = 46.0, wide - 8, 10.0, 130.0
    slot = min((right - left) / len(branches), 60.0)
    y = Scale(top=max(120 * max(error for _, _, error in known), 0.01), begin=bottom, end=top)
    parts = []
    for tick in y.ticks:
        parts.append(line(left, y(tick), left + slot * len(branches), y(tick), "grid"))
        parts.append(text(left - 8, y(tick) + 4, f"{tick:g} %", anchor="end", class_="tick"))
    gap = min(3.0, 0.12 * slot)
    for index, row, error in known:
        x, height = left + index * slot, y(0) - y(100 * error)
        title = f"after {row.name}: {100 * error:.2f} % of the stream"
        parts.append(rect(x + gap, y(100 * error), slot - 2 * gap, height, row.kind, title=title, radius=2))
        if row.kind == "mhsa":
            parts.append(text(x + slot, bottom + 15, str(row.block), anchor="middle", class_="tick"))
    parts.append(text(left, bottom + 32, "after the branches of each block, in order", class_="note"))
    return picture(wide, bottom + 40, "Error of the stream after every branch, int8 against float", parts)


def size_tree(root: Branch, wide: float = WIDE) -> str:
    """Return files and folders as bars within bars, each as wide as its bytes."""
    lane, depth = 30.0, root.depth
    parts: list[str] = []

    def draw(node: Branch, left: float, width: float, level: int) -> None:
        share = f"{say.percent(node.bytes / root.bytes)} of it" if root.bytes else ""
        title = f"{node.path}: {say.size(node.bytes)}, {share}"
        class_ = ("c5", "c1", "c2", "c3", "c4")[min(level, 4)]
        parts.append(
            rect(
                left,
                4 + lane * level,
                min(max(width - 1.5, 0.5), wide - left),
                lane - 3,
                f"{class_} soft",
                title=title,
                radius=3,
            )
        )
        words = f"{node.name} {say.size(node.bytes)}"
        if width > 7.2 * len(words) + 8:
            parts.append(text(left + 6, 4 + lane * level + 18, words, class_="label"))
        at = left
        for inner in node.inside:
            part = width * inner.bytes / node.bytes if node.bytes else 0.0
            draw(inner, at, part, level + 1)
            at += part

    draw(root, 0.0, wide, 0)
    return picture(wide, 8 + lane * depth, f"Files of {say.size(root.bytes)} as a tree", parts)
