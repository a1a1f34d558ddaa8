"""The cards of the report's page below its first screen, one function each: a report in, a card out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from edgevit.report import devices, differences, emulation, original
from edgevit.report import text as say
from edgevit.report.cards import STATES, Note, Part, Picture, Section, pairs, section, status, table, unmeasured
from edgevit.report.view import BranchRow, Report
from edgevit.schema.measurement import Environment, Latency, Measurement, not_the_device
from edgevit.util import strict_json

Drawn = Mapping[str, Picture]
LATENCY_TIPS = (
    "all open: every branch runs, all skipped: none does; most and fewest tokens: as few merge as may be, as many; "
    "real images: as each decides",
    "mean number of branches that ran",
    "half of the runs took less, by the clock on the wall",
    "half of the runs took less of the processor's time",
    *(f"{share} of all runs take less, with 99 % confidence" for share in ("90 %", "95 %", "99 %")),
    "how many runs were timed",
)
BRANCH_TIPS = (
    "attention (mhsa) or feed-forward network (ffn) of a block",
    "attention heads or neurons that are left",
    "multiply-accumulates of an image when it runs",
    "of all multiply-accumulates with every branch open",
    "share of the images for which it runs",
    "",
    "",
    "what it adds to the memory bound while it runs",
    "Linears whose weights and inputs are int8",
)


def differences_card(report: Report) -> Section | None:
    if not report.bundles:
        return None
    rows = [[row.what, *row.values] for row in report.differences]
    intro = differences.MEANING if rows else f"{differences.SAME} {differences.MEANING}"
    return section("What differs", intro, table(["", *report.bundles], rows, class_="wrap"))


def claims_card(report: Report) -> Section | None:
    if not report.claims:
        return None
    words = {True: "✓ passed", False: "✗ failed", None: "not verified"}
    rows = (
        [
            status(STATES[c.held][0], words[c.held]),
            Markup('<span class="rate">{}</span>').format(say.CLAIM_NAMES[c.name]),
            c.summary,
        ]
        for c in report.claims
    )
    return section(
        "Proven at build time",
        "Each claim has a verifier that stops the build when the claim does not hold.",
        table(["", "claim", "details"], rows, class_="claims"),
    )


def memory_card(report: Report, drawn: Drawn) -> Section:
    bound = report.bound
    kind = "An upper bound over every gate path" if bound.proven else "Not a proven bound"
    parts: list[Part] = [drawn["memory-bound"]]
    if report.memory:
        intro = (
            "The runtime's arena over one run with all branches open, under its part of the bound:"
            if report.memory.limit_bytes
            else "Resident memory of a fresh process, which has more in it than the bound covers:"
        )
        parts += [
            Note(lines=(intro,), kind="lead"),
            drawn["memory-over-run"],
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
        head = ["process before it loads", "after loading", "peak over all paths", "loading takes", "first run takes"]
        parts.append(table(head, rows))
    elif not first:
        parts.append(unmeasured("Memory over a run and the peak of a whole process are measured by"))
    return section(f"Memory: {say.size(bound.bound_bytes)}", f"{kind}: {bound.covers}.", *parts)


def latency_card(report: Report, drawn: Drawn) -> Section:
    if not report.measurements:
        return section("Latency", "", unmeasured("Not measured yet. Latency per path comes from"))
    first = next((m for m in report.measurements if m.paths), report.measurements[0])
    if not first.paths:
        return section("Latency", "; ".join(first.warnings) or "Withheld: the processor was emulated.")
    intro = (
        f"{first.paths[0].wall.runs} runs per path, interleaved, {first.environment.threads} thread"
        f"{'s' * (first.environment.threads > 1)}, on {first.images.timed} "
        f"{'golden inputs of the bundle, no real mix of images' if first.images.golden else 'real images'}. "
        f"Expected time of an image: {say.ms(first.expected_wall_ms)} wall, {say.ms(first.expected_cpu_ms)} CPU. "
        "A percentile is an upper estimate with 99 % confidence."
    )
    if report.disturbed:
        intro += Markup(
            " <strong>Wall time is well above CPU time: other programs were using this machine ({}). "
            "Trust the CPU time, or measure again.</strong>"
        ).format(_others(first.environment))
    if other := not_the_device(report.target, first.environment):
        intro = Markup("<strong>{}.</strong> {}").format(other[:1].upper() + other[1:], intro)
    if first.warnings:
        doubts = "; ".join(first.warnings)
        intro += Markup(" <strong>{}.</strong>").format(doubts[:1].upper() + doubts[1:])
    gated = report.gated_branches > 0
    head = ["path", "branches open", "wall median", "CPU median", "CPU p90", "CPU p95", "CPU p99", "runs"]
    rows = [
        [
            f"{_device(m) if len(report.measurements) > 1 else ''}{say.path(p.path, gated)}",
            f"{p.branches_open:.1f} of {len(m.branches)}",
            say.ms(p.wall.median_ms),
            *_percentiles(p.cpu),
            str(p.wall.runs),
        ]
        for m in report.measurements
        for p in m.paths
    ]
    numbers = table(head, rows, numbers=range(1, 8), less=(1, 4, 5, 6), tips=LATENCY_TIPS)
    return section("Latency", intro, drawn["latency"], numbers)


def _others(machine: Environment) -> str:
    if machine.others_cpus is not None:
        return say.cpus(machine.others_cpus)
    return f"load average {machine.load_average_before or 0:g}"


def devices_card(report: Report) -> Section | None:
    if len(report.devices) < 2:
        return None
    head = (*devices.HEAD, "cycles, estimated")
    ranges = [row.cycles and f"{say.count(row.cycles[0])} to {say.count(row.cycles[1])}" for row in report.devices]
    rows = [[*row, cycles or say.UNKNOWN] for row, cycles in zip(devices.rows(report.devices), ranges, strict=True)]
    return section("Devices", devices.MEANING, table(head, rows, numbers=range(2, len(head)), less=(1, 2, 3, 6, 7, 8)))


def instructions_card(report: Report) -> Section | None:
    found = emulation.emulated(report.measurements)
    if not found:
        return None
    notes = Note(lines=tuple(note for m in found for note in emulation.notes(m)), kind="list")
    rows = emulation.rows(found)
    tables = [table(emulation.HEAD, rows, numbers=range(2, len(emulation.HEAD)), less=(2, 4, 5, 6, 7))] if rows else []
    intro = "Executed per image on emulated processors. An emulator tells what is executed, not how long it takes."
    intro += f" {emulation.MEANING}."
    return section("Instructions", intro, *tables, notes)


def _percentiles(cpu: Latency) -> list[str]:
    return [say.ms(cpu.median_ms), *(say.percentile(value) for value in (cpu.p90_ms, cpu.p95_ms, cpu.p99_ms))]


def _device(measurement: Measurement) -> str:
    return f"{measurement.environment.cpu}: "


def branches_card(report: Report, drawn: Drawn) -> Section:
    measured = report.measurements[0].images.count if report.measurements else 0
    source = f"the {measured} measured images" if measured else "the calibration images"
    intro = f"On average {report.mean_branches_open:.1f} of {len(report.branches)} branches run on {source}."
    if not report.gated_branches:
        intro = "No branch is gated: every image runs them all."
    if report.tokens is not None:
        points = report.tokens.points
        left = "; ".join(f"{p.left.mean:.0f} after {p.after} ({p.fewest} to {p.most})" for p in points)
        intro += f" Patch tokens left by merging on average, and the fewest and most there can be: {left}."
    if report.unattributed_time_ms is not None:
        intro += (
            f" Times are of traced runs ({report.measurements[0].branches[0].time_source}), tracing included; "
            f"stem, gates, head and the runtime take {say.ms(report.unattributed_time_ms)} more."
        )
    if any(row.memory_bytes for row in report.branches):
        intro += " Memory is what a branch adds to the bound while it runs."
    head = ["branch", "units", "MACs", "share", "runs on", "time when open", "when skipped", "memory", "int8"]
    rows = table(
        head,
        (_branch(row) for row in report.branches),
        numbers=(1, 2, 3, 5, 6, 7, 8),
        less=(1, 3, 6, 7, 8),
        tips=BRANCH_TIPS,
        class_="branches",
        name="branches",
        row_classes=["gone" if row.open_rate_source == "removed" else "" for row in report.branches],
    )
    rates = [drawn["open-rates"]] if report.gated_branches else []
    errors: list[Part] = []
    if "branch-errors" in drawn:
        unmerged = "" if report.tokens is None else ", no token merged"
        told = f"Error of the stream after each branch, int8 against float, every branch open{unmerged}:"
        errors = [Note(lines=(told,), kind="lead"), drawn["branch-errors"]]
    return section("Branches", intro, *rates, *errors, rows, class_="long")


def _branch(row: BranchRow) -> list[str]:
    if row.open_rate_source == "removed":
        blank = [say.UNKNOWN] * 6
        return [row.name, f"0 of {row.units_total} {row.unit}", say.UNKNOWN, *blank]
    kind = "always" if row.open_rate_source == "always" else row.kind
    bar = Markup('<span class="rate"><span class="bar {}"><i style="width:{:.1f}%"></i></span>{}</span>')
    rate = "always" if kind == "always" else say.percent(row.open_rate, 0)
    return [
        row.name,
        f"{row.units} of {row.units_total} {row.unit}",
        say.count(row.macs),
        say.percent(row.macs_share),
        bar.format(kind, 100 * row.open_rate, rate),
        say.ms(row.open_time_ms),
        say.ms(row.skipped_time_ms),
        say.size(row.memory_bytes),
        f"{row.int8_linears} of {row.linears}",
    ]


def accuracy_card(report: Report, drawn: Drawn) -> Section:
    if not report.accuracy:
        hint = "Not measured. Build with --eval and labelled images to see top-1 before and after."
        return section("Accuracy", "", Note(lines=(hint,), kind="empty"))
    return section(
        "Accuracy before and after",
        "Top-1 is of labelled images; agreement is naming the same class as the original model in float, or as the "
        "float model that was quantized. Bars are 95 % intervals. "
        f"{original.remark(report)}",
        drawn["accuracy"],
    )


def size_card(report: Report, drawn: Drawn) -> Section:
    intro = (
        f"{say.count(report.parameters_change.before)} parameters before, "
        f"{say.count(report.parameters_change.after)} after ({say.percent(report.parameters_change.ratio, 0)})."
    )
    parts: list[Part] = [drawn["size-and-macs"]]
    if "size-tree" in drawn:
        whole = say.size(sum(file.bytes for file in report.files))
        parts += [Note(lines=(f"Files of the bundle, {whole} in all:",), kind="lead"), drawn["size-tree"]]
    return section("Size and compute", intro, *parts)


def recipe_card(report: Report) -> Section:
    done = {"prune": 0.0, "gate": 1.0, "macs": 1.0, "tokens": ""}  # what this build did not do is not said of it
    recipe = strict_json.to_data(report.recipe)
    asked = {key: value for key, value in recipe.items() if key not in done or value != done[key]}
    rows = [*_flat("", asked), *original.facts(report), *((f"weights, {key}", v) for key, v in report.origin.items())]
    rows += [("target", report.target.name), *say.int8_choice(report.target), *report.tools.items()]
    return section("How it was made", "", pairs(rows))


def _flat(prefix: str, table: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{say.key(key)}"
        if isinstance(value, Mapping):
            yield from _flat(f"{name}, ", value)
        elif isinstance(value, list | tuple) and value:
            yield name, "; ".join(map(str, value))
        elif value not in (None, "", [], ()):
            yield name, str(value)


def environment_card(measurement: Measurement) -> Section:
    e = measurement.environment
    images = (
        f"{measurement.images.count}, {measurement.images.timed} of them timed, digest {measurement.images.digest[:16]}"
    )
    if measurement.images.unreadable:
        images += f", {measurement.images.unreadable} unreadable left out"
    rows = [
        ("processor", f"{e.cpu}, {e.cores} cores, {e.arch}"),
        ("instruction sets", ", ".join(e.isa) or "unavailable"),
        ("clock before and after", _range(e.frequency_before_mhz, e.frequency_after_mhz, "MHz", e)),
        ("temperature before and after", _range(e.temperature_before_c, e.temperature_after_c, "°C", e)),
        ("CPUs that other programs kept busy", "unavailable" if e.others_cpus is None else f"{e.others_cpus:g}"),
        ("load average before and after", _range(e.load_average_before, e.load_average_after, "", e)),
        ("governor", e.governor or "unavailable"),
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
        ("pinned to CPUs", e.cpus and ", ".join(map(str, e.cpus))),
        ("throttling", ", ".join(e.throttling) or "none seen" if e.throttling is not None else "unavailable"),
        ("reached over", None if measurement.device == "local" else measurement.device),
        ("warnings", "; ".join(measurement.warnings)),
    )
    rows += [(name, value) for name, value in told if value]
    return section("Measured on", "", pairs(rows))


def _range(before: float | None, after: float | None, unit: str, _: Environment) -> str:
    if before is None or after is None:
        return "unavailable"
    return f"{before:g} and {after:g} {unit}".strip()
