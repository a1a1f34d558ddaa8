"""The report as one page: its style and pictures are in it, it loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgevit.report import devices, differences, emulation, original, pictures
from edgevit.report import text as say
from edgevit.report.view import BranchRow, Report
from edgevit.schema.measurement import Environment, Latency, Measurement, not_the_device
from edgevit.util import strict_json

STYLE = Path(__file__).with_name("style.css")


def render(report: Report) -> str:
    """One self-contained HTML document."""
    title = f"{report.name}: edgevit report"
    sections = [
        _head(report),
        _differences(report),
        _tiles(report),
        _claims(report),
        _memory(report),
        _devices(report),
        _latency(report),
        _instructions(report),
        _branches(report),
        _accuracy(report),
        _size(report),
        _recipe(report),
        *(_environment(m) for m in report.measurements),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="edgevit {escape(report.tools.get("edgevit", ""))}">\n'
        # Nothing in the page may load or run anything, whatever a manifest's strings say.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>Made by edgevit {escape(report.tools.get('edgevit', ''))}. "
        "Every figure is in the bundle's manifest or in the measurement's own file.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    height, width = report.input_size
    gated = f"{report.gated_branches} of {len(report.branches)} branches gated" if report.gated_branches else "no gates"
    removed = f", {report.removed_branches} removed" if report.removed_branches else ""
    sha = f'<br><span class="hash">sha256 {report.bundle_sha256}</span>' if report.bundle_sha256 else ""
    other = report.not_the_device
    warning = f"<p class=strong>Times on this page were {escape(other)}.</p>" if other else ""
    return (
        f"<header><h1>{escape(report.name)}</h1>"
        f'<p class="lead">{escape(report.target.description)}. '
        f"Input {height} × {width}, {gated}{removed}.{sha}</p>{warning}</header>"
    )


def _differences(report: Report) -> str:
    if not report.bundles:
        return ""
    rows = [[escape(row.what), *map(escape, row.values)] for row in report.differences]
    intro = differences.MEANING if rows else f"{differences.SAME} {differences.MEANING}"
    return _section("What differs", escape(intro), _table(["", *report.bundles], rows))


def _tiles(report: Report) -> str:
    bound, time, peak = report.bound, report.expected_time_change, report.measured_peak_bytes
    memory = f"measured peak {say.size(peak)}" if peak else "peak not measured"
    if bound.arena_bytes and peak:
        memory = f"arena ≤ {say.size(bound.arena_bytes)}, measured {say.size(peak)}"
    if not bound.proven and peak:
        memory = f"not proven; the process grew by {say.size(peak)}"
    tiles = [
        (
            "Size",
            say.size(report.size_change.after),
            f"{say.percent(report.size_change.ratio, 0)} of {say.size(report.size_change.before)} float32",
        ),
        (
            "MACs per image, expected" if report.gated_branches else "MACs per image",
            say.count(report.expected_macs_change.after),
            f"{say.percent(report.expected_macs_change.ratio, 0)} of the dense model's {say.count(report.macs.dense)}",
        ),
        ("Memory bound" if bound.proven else "Memory of the graph's tensors", say.size(bound.bound_bytes), memory),
        original.tile(report),
        _latency_tile(report, time.after if time else None, time.ratio if time else None),
        _coverage_tile(report),
    ]
    cells = (
        f'<div class="tile"><span class="name">{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for name, value, note in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _latency_tile(report: Report, expected_ms: float | None, ratio: float | None) -> tuple[str, str, str]:
    if not report.measurements:
        return ("Latency", say.UNKNOWN, "run edgevit profile on the device")
    first = report.measurements[0]
    shown = say.ms(first.expected_cpu_ms if expected_ms is None else expected_ms)
    if not first.paths:
        return ("Latency", say.UNKNOWN, "withheld: the machine was emulated")
    if report.not_the_device:
        return ("Latency", say.UNKNOWN, "not measured on the device this was built for; of another machine see below")
    note = f"{say.percent(ratio, 0)} of all open" if ratio is not None else "median"
    return ("CPU time per image, expected", shown, f"{note}, {first.images.timed} images")


def _coverage_tile(report: Report) -> tuple[str, str, str]:
    done, total = (sum(getattr(row, key) for row in report.branches) for key in ("int8_linears", "linears"))
    note = f"weights of {report.target.weight_bits} bits, per channel"
    if not report.target.int8:
        note = "this target computes in float"
    return ("Int8 Linears in branches", f"{done} of {total}", note)


def _claims(report: Report) -> str:
    if not report.claims:
        return ""
    rows = (
        [
            {
                True: '<span class="status held">✓ held</span>',
                False: '<span class="status failed">✗ failed</span>',
                None: '<span class="status">not verified</span>',
            }[c.held],
            f'<span class="rate">{escape(say.CLAIM_NAMES[c.name])}</span>',
            escape(c.summary),
        ]
        for c in report.claims
    )
    return _section(
        "Proven at build time",
        "Each claim has a verifier that stops the build when the claim does not hold.",
        _table(["", "claim", "what was found"], rows),
    )


def _memory(report: Report) -> str:
    bound = report.bound
    kind = "An upper bound over every gate path" if bound.proven else "Not a proven bound"
    parts = [_picture(pictures.memory_parts(bound, report.runtime))]
    if report.memory:
        intro = (
            "The runtime's arena over one run with all branches open, under its part of the bound:"
            if report.memory.limit_bytes
            else "Resident memory of a fresh process, which has more in it than the bound covers:"
        )
        parts += [
            f"<p class=hint style='margin-top:18px'>{intro}</p>",
            _picture(pictures.memory_over_run(report.memory)),
        ]
    first = report.measurements[0] if report.measurements else None
    if first and first.process:
        process = first.process
        rows = [
            [
                say.size(process.imported_bytes),
                say.size(process.loaded_bytes),
                say.size(process.peak_bytes),
                say.ms(first.load_ms),
                say.ms(first.first_run_ms),
            ]
        ]
        head = ["process after imports", "after loading", "peak over all paths", "loading takes", "first run takes"]
        parts.append(_table(head, rows))
    elif not first:
        parts.append(_empty("Memory over a run and the peak of a whole process are measured by"))
    return _section(f"Memory: {say.size(bound.bound_bytes)}", f"{kind}: {escape(bound.covers)}.", *parts)


def _latency(report: Report) -> str:
    if not report.measurements:
        return _section("Latency", "", _empty("Not measured yet. Latency per path comes from"))
    first = next((m for m in report.measurements if m.paths), report.measurements[0])
    if not first.paths:
        return _section("Latency", escape("; ".join(first.warnings)) or "Withheld: the processor was emulated.")
    intro = (
        f"{first.paths[0].wall.runs} runs per path, interleaved, {first.environment.threads} thread"
        f"{'s' * (first.environment.threads > 1)}, on {first.images.timed} "
        f"{'golden inputs of the bundle, no real mix of images' if first.images.golden else 'real images'}. "
        f"Expected time of an image: {say.ms(first.expected_wall_ms)} wall, {say.ms(first.expected_cpu_ms)} CPU. "
        "A percentile is an upper estimate with 99 % confidence."
    )
    if report.disturbed:
        intro += (
            " <strong>Wall time is well above CPU time: other programs were using this machine "
            f"({_others(first.environment)}). Trust the CPU time, or measure again.</strong>"
        )
    if other := not_the_device(report.target, first.environment):
        intro = f"<strong>{escape(other[:1].upper() + other[1:])}.</strong> {intro}"
    if first.warnings:
        intro += f" <strong>{escape('; '.join(first.warnings))}.</strong>"
    head = ["path", "branches open", "wall median", "CPU median", "CPU p90", "CPU p95", "CPU p99", "runs"]
    rows = [
        [
            escape(f"{_device(m)}{say.PATH_NAMES[p.path]}" if len(report.measurements) > 1 else say.PATH_NAMES[p.path]),
            f"{p.branches_open:.1f} of {len(m.branches)}",
            say.ms(p.wall.median_ms),
            *_percentiles(p.cpu),
            str(p.wall.runs),
        ]
        for m in report.measurements
        for p in m.paths
    ]
    return _section(
        "Latency", intro, _picture(pictures.latency_by_path(first.paths)), _table(head, rows, numbers=range(1, 8))
    )


def _others(machine: Environment) -> str:
    if machine.others_cpus is not None:
        return f"{machine.others_cpus:g} CPUs"
    return f"load average {machine.load_average_before or 0:g}"


def _devices(report: Report) -> str:
    if len(report.devices) < 2:
        return ""
    head = (*devices.HEAD, "cycles, estimated")
    cells = [[escape(cell) for cell in row] for row in devices.rows(report.devices)]
    ranges = [row.cycles and f"{say.count(row.cycles[0])} to {say.count(row.cycles[1])}" for row in report.devices]
    rows = [[*row, cycles or say.UNKNOWN] for row, cycles in zip(cells, ranges, strict=True)]
    return _section("Devices", escape(devices.MEANING), _table(head, rows, numbers=range(2, len(head))))


def _instructions(report: Report) -> str:
    found = emulation.emulated(report.measurements)
    if not found:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for m in found for note in emulation.notes(m))
    rows = [[escape(cell) for cell in row] for row in emulation.rows(found)]
    table = _table(emulation.HEAD, rows, numbers=range(2, len(emulation.HEAD))) if rows else ""
    intro = "Executed per image on emulated processors. An emulator tells what is executed, not how long it takes."
    intro += f" {emulation.MEANING}."
    return _section("Instructions", intro, table, f"<ul class=hint>{notes}</ul>")


def _percentiles(cpu: Latency) -> list[str]:
    return [say.ms(cpu.median_ms), *(say.percentile(value) for value in (cpu.p90_ms, cpu.p95_ms, cpu.p99_ms))]


def _device(measurement: Measurement) -> str:
    return f"{measurement.environment.cpu}: "


def _branches(report: Report) -> str:
    measured = report.measurements[0].images.count if report.measurements else 0
    source = f"the {measured} measured images" if measured else "the calibration images"
    intro = f"On average {report.mean_branches_open:.1f} of {len(report.branches)} branches run on {source}."
    if not report.gated_branches:
        intro = "No branch is gated: every image runs them all."
    if report.unattributed_time_ms is not None:
        intro += (
            f" Times are of traced runs ({escape(report.measurements[0].branches[0].time_source)}), tracing included; "
            f"stem, gates, head and the runtime take {say.ms(report.unattributed_time_ms)} more."
        )
    if any(row.memory_bytes for row in report.branches):
        intro += " Memory is what a branch adds to the bound while it runs."
    head = ["branch", "units", "MACs", "share", "runs on", "time when open", "when skipped", "memory", "int8"]
    table = _table(
        head,
        (_branch(row) for row in report.branches),
        numbers=(1, 2, 3, 5, 6, 7, 8),
        class_="branches",
        row_classes=["gone" if row.open_rate_source == "removed" else "" for row in report.branches],
    )
    rates = _picture(pictures.open_rates(report.branches)) if report.gated_branches else ""
    return _section("Branches", intro, rates, table, class_="long")


def _branch(row: BranchRow) -> list[str]:
    if row.open_rate_source == "removed":
        blank = [say.UNKNOWN] * 6
        return [escape(row.name), f"0 of {row.units_total} {row.unit}", say.UNKNOWN, *blank]
    kind = "always" if row.open_rate_source == "always" else row.kind
    bar = f'<span class="bar {kind}"><i style="width:{100 * row.open_rate:.1f}%"></i></span>'
    return [
        escape(row.name),
        f"{row.units} of {row.units_total} {row.unit}",
        say.count(row.macs),
        say.percent(row.macs_share),
        f'<span class="rate">{bar}{"always" if kind == "always" else say.percent(row.open_rate, 0)}</span>',
        say.ms(row.open_time_ms),
        say.ms(row.skipped_time_ms),
        say.size(row.memory_bytes),
        f"{row.int8_linears} of {row.linears}",
    ]


def _accuracy(report: Report) -> str:
    if not report.accuracy:
        hint = "Build with --eval and labelled images to see top-1 before and after."
        return _section("Accuracy", "", f'<div class="empty">Not measured. {hint}</div>')
    return _section(
        "Accuracy before and after",
        "Top-1 is of labelled images; agreement is naming the same class as the original model in float, or as the "
        "float model that was quantized. Bars are 95 % intervals. "
        f"{escape(original.remark(report))}",
        _picture(pictures.accuracy(report.accuracy)),
    )


def _size(report: Report) -> str:
    intro = (
        f"{say.count(report.parameters_change.before)} parameters before, "
        f"{say.count(report.parameters_change.after)} after ({say.percent(report.parameters_change.ratio, 0)})."
    )
    return _section("Size and compute", intro, _picture(pictures.size_and_macs(report)))


def _recipe(report: Report) -> str:
    done = {"prune": 0.0, "gate": 1.0}  # what this build did not do is not said of it
    recipe = strict_json.to_data(report.recipe)
    asked = {key: value for key, value in recipe.items() if key not in done or value != done[key]}
    rows = [*_flat("", asked), *original.facts(report), *((f"weights, {key}", v) for key, v in report.origin.items())]
    rows += [("target", report.target.name), *say.int8_choice(report.target), *report.tools.items()]
    return _section("How it was made", "", _pairs(rows))


def _flat(prefix: str, table: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(f"{name}, ", value)
        elif isinstance(value, list | tuple) and value:
            yield name, "; ".join(map(str, value))
        elif value not in (None, "", [], ()):
            yield name, str(value)


def _environment(measurement: Measurement) -> str:
    e = measurement.environment
    images = (
        f"{measurement.images.count}, {measurement.images.timed} of them timed, digest {measurement.images.digest[:16]}"
    )
    if measurement.images.unreadable:
        images += f", {measurement.images.unreadable} unreadable left out"
    rows = [
        ("processor", f"{e.cpu}, {e.cores} cores, {e.arch}"),
        ("instruction sets", ", ".join(e.isa) or "not told"),
        ("clock before and after", _range(e.frequency_before_mhz, e.frequency_after_mhz, "MHz", e)),
        ("temperature before and after", _range(e.temperature_before_c, e.temperature_after_c, "°C", e)),
        ("CPUs that other programs kept busy", "not told" if e.others_cpus is None else f"{e.others_cpus:g}"),
        ("load average before and after", _range(e.load_average_before, e.load_average_after, "", e)),
        ("governor", e.governor or "not told"),
        ("memory", say.size(e.memory_total_bytes)),
        ("system", e.system),
        (
            "runtime",
            f"{e.runtime} {e.runtime_version}, {e.threads} thread{'s' * (e.threads > 1)}, {e.inference_precision}",
        ),
        ("Python", e.python),
        ("images", images),
    ]
    told = (
        ("CPU part", e.cpu_part),
        ("held to CPUs", e.cpus and ", ".join(map(str, e.cpus))),
        ("throttling", ", ".join(e.throttling) or "none seen" if e.throttling is not None else "not told"),
        ("reached over", None if measurement.device == "local" else measurement.device),
        ("warnings", "; ".join(measurement.warnings)),
    )
    rows += [(name, value) for name, value in told if value]
    return _section("Measured on", "", _pairs(rows))


def _range(before: float | None, after: float | None, unit: str, _: Environment) -> str:
    if before is None or after is None:
        return "not told"
    return f"{before:g} and {after:g} {unit}".strip()


def _section(title: str, intro: str, *parts: str, class_: str = "") -> str:
    lead = f'<p class="hint">{intro}</p>' if intro else ""
    return f'<section class="{class_}"><h2>{escape(title)}</h2>{lead}{"".join(parts)}</section>'


def _picture(svg: str) -> str:
    return f'<div class="picture">{svg}</div>'


def _empty(text: str) -> str:
    return f'<div class="empty">{escape(text)} <code>edgevit profile BUNDLE --images DIR</code></div>'


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows) + "</dl>"


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    class_: str = "",
    row_classes: Sequence[str] = (),
) -> str:
    """Cells are HTML already; `numbers` are the columns set to the right."""

    def cell(tag: str, index: int, content: str) -> str:
        return f'<{tag} class="number">{content}</{tag}>' if index in numbers else f"<{tag}>{content}</{tag}>"

    top = "".join(cell("th", i, escape(name)) for i, name in enumerate(head))
    body = "".join(
        f'<tr class="{row_classes[index] if row_classes else ""}">'
        + "".join(cell("td", i, content) for i, content in enumerate(row))
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="scroll"><table class="{class_}"><tr>{top}</tr>{body}</table></div>'
