"""Draw Programs, measurements and reports for a notebook: small tables and the report's pictures, every text escaped.

The style is the page's own, confined to what is drawn: it changes nothing else in the notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.report import pictures
from edgevit.report import text as say
from edgevit.report.lines import lines
from edgevit.report.svg import Scale, line, picture, rect, text
from edgevit.report.view import Report
from edgevit.schema.measurement import Measurement
from edgevit.util.notebook import draws

STYLE = Path(__file__).with_name("style.css")
CLASS = "edgevit-shown"
WIDE, WIDEST_SLOT = 920.0, 60.0


def block(title: str, *parts: str) -> str:
    """Return one HTML block under a title; `parts` are HTML already."""
    # What the page says of its root and body is said of the block: nested rules reach nothing outside it.
    style = STYLE.read_text(encoding="utf-8").replace(":root {", "& {").replace("body {", "& {")
    confined = f".{CLASS} {{\n{style}\n}}\n.{CLASS} {{ padding: 14px 18px; border-radius: 12px; max-width: 1016px; }}"
    content = "\n".join(part for part in parts if part)
    return f'<div class="{CLASS}"><style>{confined}</style><h2>{escape(title)}</h2>\n{content}</div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def ranked(rows: Sequence[tuple[str, float]]) -> str:
    """Return names with fractions 0..1, each with a bar."""
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="rate"><span class="bar"><i style="width:{100 * value:.0f}%"></i></span>'
        f"{escape(say.percent(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


@draws(Program)
def program(shown: Program) -> str:
    """Draw what a model is: its size, what is left of each branch, and where it came from."""
    spec = shown.spec
    left, whole = sum(b.units > 0 for b in spec.branches), len(spec.branches)
    gates = sum(b.gate is not None for b in spec.branches)
    parameters = sum(array.size for array in shown.weights.values())
    origin = [(key, value) for key, value in spec.origin.items() if key in ("source", "license", "licence", "credit")]
    rows = [
        ("input", f"{spec.image.height} x {spec.image.width} RGB, {spec.tokens} tokens of {spec.dim}"),
        ("parameters", f"{say.count(parameters)} ({say.size(4 * parameters)} as float32)"),
        ("MACs per image", f"{say.count(total_macs(spec))} with every branch"),
        ("branches", f"{left} of {whole}, {gates} with a gate" if gates else f"{left} of {whole}, without gates"),
        ("output", f"{spec.head.classes} {'classes' if spec.head.linear else 'features'}"),
        *([("made of", spec.original.name)] if spec.original else []),
        *([("how", "; ".join(spec.original.steps))] if spec.original and spec.original.steps else []),
        *origin,
    ]
    return block(f"{spec.name}: a Program", pairs(rows), _picture(_units_left(spec)) if spec.branches else "")


@draws(Measurement)
def measurement(shown: Measurement) -> str:
    """Draw what a device measured: every timed run, the expected cost of an image, and warnings."""
    machine = shown.environment
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    rows = [
        ("device", f"{machine.cpu} ({machine.arch}, {cores}), {'here' if shown.device == 'local' else shown.device}"),
        ("runtime", f"{machine.runtime} {machine.runtime_version}, threads: {machine.threads}"),
        ("images", f"{shown.images.count}{', the golden inputs only' if shown.images.golden else ''}"),
        ("expected per image", f"{say.ms(shown.expected_wall_ms)} wall, {say.ms(shown.expected_cpu_ms)} CPU"),
        ("loading", say.ms(shown.load_ms)),
        *([("process memory", f"at most {say.size(shown.process.peak_bytes)}")] if shown.process else []),
        *([("not the device", shown.not_the_device)] if shown.not_the_device else []),
        *(("warning", warning) for warning in shown.warnings),
    ]
    told = "" if shown.paths else f"<p>{'<br>'.join(escape(each) for each in lines(shown))}</p>"
    drawn = _picture(pictures.latency_by_path(shown.paths)) if shown.paths else ""
    return block(f"{shown.bundle}: a measurement", pairs(rows), drawn, told)


@draws(Report)
def report(shown: Report) -> str:
    """Draw a bundle: what it costs, which claims hold, how often its gates open, and its accuracy."""
    states = {True: "passed", False: "FAILED", None: "not verified"}
    rows = [
        ("target", shown.target.name),
        ("size", f"{say.size(shown.sizes.model_bytes)} of {say.size(shown.sizes.float_bytes)} float32"),
        ("MACs per image", f"{say.count(shown.macs.expected)} expected of {say.count(shown.macs.dense)} dense"),
        (
            "memory bound" if shown.bound.proven else "memory of the graph's tensors (no bound)",
            say.size(shown.bound.bound_bytes),
        ),
        *((say.CLAIM_NAMES[claim.name], f"{states[claim.held]}: {claim.summary}") for claim in shown.claims),
        *([("sha256", shown.bundle_sha256)] if shown.bundle_sha256 else []),
    ]
    parts = [pairs(rows), _picture(pictures.size_and_macs(shown))]
    if shown.gated_branches:
        parts.append(_picture(pictures.open_rates(shown.branches)))
    if shown.accuracy:
        parts.append(_picture(pictures.accuracy(shown.accuracy)))
    parts += [
        f"<p>{escape(each.environment.cpu)}</p>{_picture(pictures.latency_by_path(each.paths))}"
        for each in shown.measurements
        if each.paths
    ]
    return block(f"{shown.name}: a bundle", *parts)


def _units_left(spec: ProgramSpec) -> str:
    """Draw the share of its units that every branch has left: one bar per branch, in order."""
    left, top, bottom = 46.0, 12.0, 112.0
    slot = min((WIDE - 8 - left) / len(spec.branches), WIDEST_SLOT)
    y = Scale(top=1.0, begin=bottom, end=top)
    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts.append(line(left, y(tick), left + slot * len(spec.branches), y(tick), "grid"))
        parts.append(text(left - 8, y(tick) + 4, f"{100 * tick:.0f} %", anchor="end", class_="tick"))
    for index, (branch, macs) in enumerate(zip(spec.branches, macs_by_branch(spec), strict=True)):
        x, gap = left + index * slot, min(3.0, 0.12 * slot)
        share = branch.units / branch.units_total if branch.units_total else 0.0
        what = f"{branch.name}: {branch.units} of {branch.units_total} units, {say.count(macs)} MACs"
        parts.append(rect(x + gap, top, slot - 2 * gap, bottom - top, "slot", title=what, radius=2))
        parts.append(rect(x + gap, y(share), slot - 2 * gap, bottom - y(share), branch.kind, title=what, radius=2))
        if branch.gate is not None:
            parts.append(text(x + slot / 2, bottom + 14, "g", anchor="middle", class_="tick"))
    note = "units left of every branch, in order: attention heads and FFN neurons; g: has a gate"
    parts.append(text(left, bottom + 32, note, class_="note"))
    return picture(WIDE, bottom + 40, f"Units left of every branch of {spec.name}", parts)


def _picture(svg: str) -> str:
    return f'<div class="picture">{svg}</div>'
