"""A report as Markdown, for a pull request: the first screen, the claims, and what was timed beside it."""

from __future__ import annotations

from edgevit.report import efforts, first, markdown
from edgevit.report import text as say
from edgevit.report.view import Report


def as_markdown(report: Report) -> str:
    """Return the report in short."""
    parts = [f"### {markdown.text(report.name)}", markdown.text(f"{report.target.description}.")]
    parts += [f"**{markdown.text(note)}**" for note in first.notes(report)]
    tiles = [[tile.name, tile.value, tile.note] for tile in first.tiles(report).tiles]
    parts.append(markdown.table(["", "", ""], tiles, numbers=(1,)))
    words = {True: "✓ passed", False: "✗ failed", None: "not verified"}
    claims = [[words[c.held], say.CLAIM_NAMES[c.name], c.summary] for c in report.claims]
    if claims:
        parts.append(_folded("Proven at build time", markdown.table(["", "claim", "details"], claims)))
    if report.speed:
        rows = [[r.name, r.runtime, say.ms(r.time_ms), first.times(r.ratio), r.why] for r in report.speed]
        head = ["model", "runtime", "time of an image", "times this build", ""]
        parts.append(_folded("How much faster than before", markdown.table(head, rows, numbers=(2, 3))))
    if report.efforts:
        head, rows = efforts.head(report.efforts, report.effort_metric), efforts.rows(report.efforts)
        parts.append(_folded("Operating points", markdown.table(head, rows, numbers=range(1, len(head)))))
    if report.bundle_sha256:
        parts.append(f"sha256 `{report.bundle_sha256}`")
    return "\n\n".join(parts) + "\n"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"
