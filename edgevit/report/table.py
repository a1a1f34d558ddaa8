"""The report in a terminal: what the bundle is, what was proven, what was measured, one row per branch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgevit.report import devices, differences, efforts, emulation, first, original
from edgevit.report import text as say
from edgevit.report.view import BranchRow, Report


def show(report: Report, console: Console) -> None:
    """Print the whole report."""
    # A manifest's strings are shown as they are: Text knows no markup.
    console.print(Text.assemble((report.name, "bold"), f"  {report.target.name}"))
    if report.bundles:
        console.print(_differences(report))
        console.print(f"{'' if report.differences else f'{differences.SAME} '}{differences.MEANING}\n", highlight=False)
    if report.not_the_device:
        console.print(Text(f"Times below were {report.not_the_device}.", "bold yellow"))
    console.print(_facts(report))
    if report.claims:
        console.print(_claims(report))
    console.print(_branches(report))
    if report.efforts:
        console.print(_efforts(report))
    if len(report.devices) > 1:
        console.print(_devices(report))
    for table in _paths(report):
        console.print(table)
    if emulation.emulated(report.measurements):
        console.print(_emulated(report))
    if not report.measurements:
        console.print("Not measured yet: edgevit profile BUNDLE --images DIR", highlight=False)


def _differences(report: Report) -> Table:
    """Return what is not the same in the bundles, before anything of one of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), title="What differs", title_justify="left")
    for name in ("", *report.bundles):
        table.add_column(Text(name), overflow="fold")
    for row in report.differences:
        table.add_row(row.what, *map(Text, row.values))
    return table


def _facts(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    size, macs, expected = report.size_change, report.macs_change, report.expected_macs_change
    table.add_row("size", f"{say.size(size.after)}, {say.percent(size.ratio, 0)} of {say.size(size.before)} float32")
    table.add_row(
        "MACs",
        f"{say.count(expected.after)} expected, {say.count(macs.after)} all open, {say.count(macs.before)} dense",
    )
    if report.budgets:
        fit = first.tiles(report).tiles[0]
        table.add_row("fits", Text(f"{fit.value}; {fit.note}"))
    for other in report.speed:
        if not other.ours:
            told = f"{other.ratio:.2f} times its time" if other.ratio is not None else f"not timed: {other.why}"
            table.add_row("against", Text(f"{other.name}: {told}"))
    bound = report.bound
    peak = f", measured peak {say.size(report.measured_peak_bytes)}" if report.measured_peak_bytes else ""
    arena = f" ({say.size(bound.arena_bytes)} of it in the arena{peak})" if bound.arena_bytes else peak
    table.add_row("memory bound" if bound.proven else "memory, not proven", f"{say.size(bound.bound_bytes)}{arena}")
    for row in report.accuracy:
        path = "" if row.path == "real" else f", {say.PATH_NAMES[row.path]}"
        table.add_row(say.metric(row), Text(f"{row.model}{path}: {say.interval(row)}"))
    if original.remark(report):
        table.add_row("", Text(original.remark(report)))
    for step in report.compression:
        table.add_row("compressed", Text(step))
    for name, reason in say.int8_choice(report.target):
        table.add_row(name, Text(reason))
    if report.bundle_sha256:
        table.add_row("sha256", report.bundle_sha256)
    return table


def _claims(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Proven at build time", title_justify="left")
    for name in ("", "claim", "details"):
        table.add_column(name)
    for claim in report.claims:
        mark = {True: ("passed", "green"), False: ("FAILED", "red"), None: ("not verified", "yellow")}[claim.held]
        table.add_row(Text(*mark), say.CLAIM_NAMES[claim.name], Text(claim.summary))
    return table


def _branches(report: Report) -> Table:
    source = "measured images" if report.measurements else "calibration images"
    title = f"Branches; {report.mean_branches_open:.1f} of {len(report.branches)} run on average on {source}"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for name in ("branch", "units", "MACs", "runs on", "open", "skipped", "memory", "int8"):
        table.add_column(name, justify="left" if name == "branch" else "right", no_wrap=True)
    for row in report.branches:
        table.add_row(*_branch(row), style="dim" if row.open_rate_source == "removed" else None)
    return table


def _branch(row: BranchRow) -> list[str | Text]:
    units = f"{row.units}/{row.units_total}"
    if row.open_rate_source == "removed":
        return [Text(row.name), units, say.UNKNOWN, "removed", *[say.UNKNOWN] * 4]
    return [
        Text(row.name),
        units,
        say.count(row.macs),
        say.percent(row.open_rate, 0) if row.gated else "always",
        say.ms(row.open_time_ms),
        say.ms(row.skipped_time_ms),
        say.size(row.memory_bytes),
        f"{row.int8_linears}/{row.linears}",
    ]


def _efforts(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Operating points", title_justify="left")
    for index, name in enumerate(efforts.head(report.efforts, report.effort_metric)):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in efforts.rows(report.efforts):
        table.add_row(*map(Text, row))
    table.caption, table.caption_justify = Text(efforts.alike(report.efforts)), "left"
    return table


def _devices(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Devices of this model", title_justify="left")
    for index, name in enumerate(devices.HEAD):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for row in devices.rows(report.devices):
        table.add_row(*map(Text, row))
    table.caption, table.caption_justify = Text(devices.MEANING), "left"
    return table


def _paths(report: Report) -> list[Table]:
    tables = []
    for m in report.measurements:
        if m.emulation is not None:
            continue
        e = m.environment
        where = f"{e.cpu}, {e.runtime} {e.runtime_version}, {e.threads} thread{'s' * (e.threads > 1)}"
        images = "golden inputs" if m.images.golden else f"{m.images.timed} of {m.images.count} images timed"
        title = Text(f"Latency on {where}, {images}")
        table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
        for name in ("path", "open", "wall", "CPU", "p90 CPU", "p95 CPU", "p99 CPU", "runs"):
            table.add_column(name, justify="left" if name == "path" else "right", no_wrap=True)
        for p in m.paths:
            table.add_row(
                say.path(p.path, report.gated_branches > 0),
                f"{p.branches_open:.1f}",
                say.ms(p.wall.median_ms),
                say.ms(p.cpu.median_ms),
                *(say.percentile(value) for value in (p.cpu.p90_ms, p.cpu.p95_ms, p.cpu.p99_ms)),
                str(p.wall.runs),
            )
        if m.paths:
            table.add_row("expected", "", say.ms(m.expected_wall_ms), say.ms(m.expected_cpu_ms))
        notes = [f"warning: {warning}" for warning in m.warnings]
        if m.process:
            notes.insert(
                0,
                f"process peak {say.size(m.process.peak_bytes)} ({say.size(m.process.imported_bytes)} of it after "
                f"imports), loads in {say.ms(m.load_ms)}",
            )
        # As Text: what a board says of itself is shown as it is.
        table.caption = Text("\n".join(notes)) if notes else None
        table.caption_justify = "left"
        tables.append(table)
    return tables


def _emulated(report: Report) -> Table:
    title = "Executed instructions per image on emulated processors, which have no times"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for index, name in enumerate(emulation.HEAD):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for row in emulation.rows(report.measurements):
        table.add_row(*map(Text, row))
    lines = [emulation.MEANING]
    lines += [line for m in emulation.emulated(report.measurements) for line in emulation.notes(m)]
    table.caption, table.caption_justify = Text("\n".join(lines)), "left"
    return table
