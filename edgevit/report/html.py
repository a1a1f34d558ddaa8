"""The report as one page: its style, pictures and script are in it, and it loads nothing."""

from __future__ import annotations

from markupsafe import Markup

from edgevit.report import first, sections
from edgevit.report.cards import Card
from edgevit.report.drawn import figures
from edgevit.report.page import page
from edgevit.report.view import Report


def render(report: Report) -> str:
    """Return one self-contained HTML document; whatever a manifest's strings say, they stay text."""
    drawn = figures(report)
    cards: list[Card | None] = [
        sections.differences_card(report),
        first.tiles(report),
        first.fit_card(report),
        first.speed_card(report, drawn),
        sections.claims_card(report),
        first.effort_card(report, drawn),
        sections.memory_card(report, drawn),
        sections.devices_card(report),
        sections.latency_card(report, drawn),
        first.images_card(report, drawn),
        sections.instructions_card(report),
        sections.branches_card(report, drawn),
        sections.accuracy_card(report, drawn),
        sections.size_card(report, drawn),
        sections.recipe_card(report),
        *map(sections.environment_card, report.measurements),
    ]
    made_by = report.tools.get("edgevit", "")
    return page(
        report.name,
        _lead(report),
        [card for card in cards if card is not None],
        made_by=made_by,
        strong=tuple(first.notes(report)),
        footer=f"Made by edgevit {made_by}. Every figure is in the bundle's manifest or in the measurement's own file.",
    )


def _lead(report: Report) -> str:
    gated = f"{report.gated_branches} of {len(report.branches)} branches gated" if report.gated_branches else "no gates"
    gates = gated + (f", {report.removed_branches} removed" if report.removed_branches else "")
    if report.tokens is not None:
        gates += ", merging as many tokens as the image allows"
    elif any(step.startswith("tokens merged") for step in report.compression):
        gates += ", merging as many tokens in every image"
    size = f"{report.input_size[0]} × {report.input_size[1]}"
    lead = Markup("{}. Input {}, {}.").format(report.target.description, size, gates)
    if report.bundle_sha256:
        lead += Markup('<br><span class="hash">sha256 {}</span>').format(report.bundle_sha256)
    return lead
