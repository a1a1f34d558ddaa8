"""The first screen: does it fit, how fast, what was lost, what it takes; and the cards that say why."""

from __future__ import annotations

from collections.abc import Iterator

from edgevit.report import efforts, original
from edgevit.report import text as say
from edgevit.report.cards import STATES, Section, State, Tile, Tiles, section, status, table
from edgevit.report.sections import Drawn
from edgevit.report.view import Report
from edgevit.schema.budget import BUDGETS, BudgetCheck
from edgevit.schema.points import effort_text

SHORT = {
    "ram_mb": ("RAM", "MB"),
    "flash_mb": ("flash", "MB"),
    "latency_ms": ("time", "ms"),
    "drop_points": ("loss", "points"),
}
FASTER, SLOWER = 1.02, 0.98  # a ratio between them is no difference worth a word


def tiles(report: Report) -> Tiles:
    """Return what one decides from, in one row of figures."""
    return Tiles(
        tiles=(
            _fit(report),
            _time(report),
            _speed(report),
            original_tile(report),
            _memory(report),
            _size(report),
            _macs(report),
        )
    )


def original_tile(report: Report) -> Tile:
    """Return what was lost against the original, and on how many images."""
    name, value, note = original.tile(report)
    return Tile(name=name, value=value, note=note)


def speed_card(report: Report, drawn: Drawn) -> Section | None:
    """Return this build's time beside that of what was timed in the same run."""
    if not report.speed:
        return None
    rows = [
        [row.name, row.runtime, say.ms(row.time_ms), times(row.ratio), row.why or say.UNKNOWN] for row in report.speed
    ]
    machine = report.measurements[0].environment
    intro = (
        f"Timed in one run, taking turns, on {machine.cpu} with {machine.threads} thread"
        f"{'s' * (machine.threads > 1)}; {'CPU' if machine.threads == 1 else 'wall'} time, medians; of this build the "
        "expected time on the images."
    )
    pictures = [drawn["speed"]] if "speed" in drawn else []
    missing = any(row.why for row in report.speed)
    head = ["model", "runtime", "time of an image", "times this build", *(["why not timed"] if missing else [])]
    shown = [row if missing else row[:4] for row in rows]
    return section("How much faster than before", intro, *pictures, table(head, shown, numbers=(2, 3), less=(1,)))


def effort_card(report: Report, drawn: Drawn) -> Section | None:
    """Return accuracy, cost and time at each effort."""
    if "effort" not in drawn:
        return None
    points, timed = report.efforts, efforts.timed(report.efforts)
    intro = f"Measured when it was built, on {points[0].images} images. A runner takes a point by its name. "
    if timed:
        machine = report.measurements[0].environment
        clock = "CPU time" if machine.threads == 1 else "wall time"
        intro += f"Times are {clock} on {machine.cpu}; a line ends at the time of the image that takes most. "
    else:
        intro += "A line ends at the cost of the image that takes most; edgevit profile measures times. "
    less = (1, 2, 3, 4, 7) if timed else (1, 3, 4)
    shown = table(efforts.head(points, report.effort_metric), efforts.rows(points), numbers=range(1, 8), less=less)
    title = "Accuracy against time, over effort" if timed else "Accuracy against cost, over effort"
    return section(title, intro + efforts.alike(points), drawn["effort"], shown)


def images_card(report: Report, drawn: Drawn) -> Section | None:
    """Return what ran for which image, and the easiest and hardest of them where pictures were given."""
    if "tokens-per-image" in drawn:
        tokens = report.measurements[0].tokens
        easiest, hardest = (say.tokens(end(tokens, key=sum)) for end in (min, max))
        intro = (
            f"Patch tokens left after every point where they merge: of {len(tokens)} images the easiest keeps "
            f"{easiest}, the hardest {hardest}. Images stand in the order of all that they keep together."
        )
        pictures = [drawn[name] for name in ("tokens-per-image", "cost-per-image") if name in drawn]
        return section("Cost per image", intro, *pictures, *report.thumbs)
    if "cost-per-image" not in drawn:
        return None
    gates = report.measurements[0].gates
    counts = [row.count("1") for row in gates]
    intro = (
        f"Of {len(gates)} images the easiest ran {min(counts)} branches, the hardest {max(counts)} of "
        f"{len(report.branches)}; a coloured cell is a branch that ran."
    )
    return section("Cost per image", intro, drawn["cost-per-image"], *report.thumbs)


def fit_card(report: Report) -> Section | None:
    """Return every budget with what was held against it."""
    if not report.budgets:
        return None
    rows = [
        [
            status(*STATES[check.held]),
            BUDGETS[check.key],
            f"{_amount(check.value)} of at most {_amount(check.limit)}",
            f"{check.what[:1].upper()}{check.what[1:]}.",
        ]
        for check in report.budgets
    ]
    intro = "Limits of the target, or those given. What was not measured on the device is unknown, never guessed."
    head = ["", "limit", "needs", "based on"]
    return section("Does it fit", intro, table(head, rows, class_="claims"))


def _fit(report: Report) -> Tile:
    name, checks = "Does it fit", report.budgets
    if not checks:
        note = "no limits given: edgevit report --budget ram=64,latency=20, or in the target"
        return Tile(name=name, value=say.UNKNOWN, note=note, state="unknown", whole=True)
    words = {True: "met", False: "not met", None: "unknown"}
    by_state = [(state, [c for c in checks if c.held is state]) for state in (False, None, True)]
    parts = [f"{words[state]}: {', '.join(_short(c) for c in found)}" for state, found in by_state if found]
    held = all(check.held for check in checks)
    failed = any(check.held is False for check in checks)
    value = "no" if failed else "yes" if held else "not known"
    state: State = "failed" if failed else "met" if held else "unknown"
    return Tile(name=name, value=value, note="; ".join(parts), state=state, whole=True)


def _short(check: BudgetCheck) -> str:
    name, of = SHORT[check.key]
    return f"{name} {_amount(check.value)} of {_amount(check.limit)} {of}"


def _amount(value: float | None) -> str:
    return say.UNKNOWN if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _time(report: Report) -> Tile:
    why = ""
    if not report.measurements:
        why = "run edgevit profile on the device"
    elif not report.measurements[0].paths:
        why = "withheld: the machine was emulated"
    elif report.not_the_device:
        why = "not measured on the device this was built for; of another machine see below"
    if why:
        return Tile(name="Time of an image", value=say.UNKNOWN, note=why, state="unknown")
    first = report.measurements[0]
    alone = first.environment.threads == 1
    shown = say.ms(first.expected_cpu_ms if alone else first.expected_wall_ms)
    change = report.expected_time_change
    parts = [f"on {first.environment.cpu}", f"{first.images.timed} images"]
    if change is not None and report.gated_branches:
        parts.append(f"{say.percent(change.ratio, 0)} of all open")
    if first.effort:
        named = [point.name for point in report.efforts if point.name and point.effort == first.effort]
        parts.append(f"at effort {effort_text(first.effort)}" + (f" ({named[0]})" if named else ""))
    if report.disturbed:
        parts.append("other programs were busy")
    return Tile(name=f"{'CPU time' if alone else 'Time'} of an image, expected", value=shown, note=", ".join(parts))


def _speed(report: Report) -> Tile:
    name = "Against dense float"
    timed = [row for row in report.speed if not row.ours and row.ratio is not None]
    if not timed or report.not_the_device:
        why = "edgevit profile --against MODEL times it beside the build"
        if report.not_the_device:
            why = "not measured on the device this was built for"
        return Tile(name=name, value=say.UNKNOWN, note=why, state="unknown")
    ratio = timed[0].ratio or 0.0
    others = [f"{times(row.ratio)} as fast as {row.name}" for row in timed[1:]]
    note = "; ".join([f"{timed[0].name}: {say.ms(timed[0].time_ms)}", *others])
    state: State = "met" if ratio >= FASTER else "failed" if ratio < SLOWER else ""
    return Tile(name=name, value=f"{ratio:.2f}× as fast", note=note, state=state)


def times(ratio: float | None) -> str:
    """Return a ratio with its sign: 2.10×."""
    return say.UNKNOWN if ratio is None else f"{ratio:.2f}×"


def _memory(report: Report) -> Tile:
    """Return what a process will hold, and what of it is proven."""
    bound = report.bound
    word = "proven of it" if bound.proven else "of it the graph's tensors, not proven"
    process = report.measurements[0].process if report.measurements else None
    if process is not None:
        return Tile(
            name="Memory of a process",
            value=say.size(process.peak_bytes),
            note=f"{say.size(process.imported_bytes)} before it loads; {word}: {say.size(bound.bound_bytes)}",
        )
    peak = report.measured_peak_bytes
    if not bound.proven:
        note = f"the process grew by {say.size(peak)}" if peak else "edgevit profile measures the process"
        return Tile(name="Memory of the graph's tensors", value=say.size(bound.bound_bytes), note=f"not proven; {note}")
    arena = f"arena ≤ {say.size(bound.arena_bytes)}, measured {say.size(peak)}; " if bound.arena_bytes and peak else ""
    note = f"{arena}without the runtime; edgevit profile measures the process"
    return Tile(name="Memory of the model, proven", value=say.size(bound.bound_bytes), note=note)


def _size(report: Report) -> Tile:
    change = report.size_change
    return Tile(
        name="Size",
        value=say.size(change.after),
        note=f"{say.percent(change.ratio, 0)} of {say.size(change.before)} float32",
    )


def _macs(report: Report) -> Tile:
    change = report.expected_macs_change
    done, total = (sum(getattr(row, key) for row in report.branches) for key in ("int8_linears", "linears"))
    int8 = f"; {done} of {total} Linears in branches int8" if report.target.int8 else "; this target computes in float"
    follows = ""
    if (use := report.tokens) is not None:
        follows = f", {say.count(use.macs.low)} to {say.count(use.macs.high)} for eight of ten calibration images"
    varies = report.gated_branches or report.tokens is not None
    return Tile(
        name="MACs of an image, expected" if varies else "MACs of an image",
        value=say.count(change.after),
        note=f"{say.percent(change.ratio, 0)} of the dense model's {say.count(report.macs.dense)}{follows}{int8}",
    )


def notes(report: Report) -> Iterator[str]:
    """Yield what must not be missed on the first screen."""
    if report.not_the_device:
        yield f"Times on this page were {report.not_the_device}."
