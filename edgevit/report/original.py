"""What a report says of the original model: the first screen's accuracy, and how the bundle's model was made of it."""

from __future__ import annotations

from collections.abc import Iterable

from edgevit.program.original import best_known
from edgevit.report import text as say
from edgevit.report.view import Report
from edgevit.schema.manifest import AccuracyRow


def tile(report: Report) -> tuple[str, str, str]:
    """The bundle against the original, then which step lost how much; without the original, that it is not known."""
    change, agreement, quantized = report.accuracy_change, report.agreement, report.float_agreement
    unknown = "; original not known on these images" if report.original_unknown else ""
    if change:
        before = "compressed float model" if report.accuracy_before == "compressed" else "original"
        note = f"{before} {say.percent(change.before)}, {say.points(change.after - change.before)}{_judged(report)}"
        if report.compression_points is not None and report.quantization_points is not None:
            shares = [100 * points for points in (report.compression_points, report.quantization_points)]
            note += f": {shares[0]:+.1f} by compression, {shares[1]:+.1f} by quantization"
        return ("Top-1", say.percent(change.after), note + unknown + (_before(report) if unknown else ""))
    if agreement and agreement.against == "original":
        note = _interval(agreement)
        if quantized:
            note += f", with the compressed float model {say.percent(quantized.value)}"
        return ("Agreement with the original", say.percent(agreement.value), note + _before(report))
    if agreement:
        name = "Agreement with compressed float" if unknown else "Agreement with float"
        return (name, say.percent(agreement.value), f"{_interval(agreement)}{unknown}{_before(report)}")
    return ("Accuracy", say.UNKNOWN, "not measured")


def _interval(row: AccuracyRow) -> str:
    """Return on how many images, and how far off the figure may be for that."""
    return f"n = {row.images}, {100 * row.low:.0f} to {100 * row.high:.0f} % with 95 % confidence"


def _judged(report: Report) -> str:
    """Return on how many labelled images top-1 was judged."""
    judged = next((row for row in report.accuracy if (row.model, row.metric) == ("bundle", "top1")), None)
    return f" (n = {judged.images})" if judged else ""


def _before(report: Report) -> str:
    """Return what compression cost on labelled images that were seen before, in few words."""
    said = best_known(report.original, labelled=True)
    if said is None or said.original_top1 is None or said.top1 is None:
        return ""
    change = f"{100 * said.original_top1:.1f} → {100 * said.top1:.1f} %"
    return f"; when compressed, top-1 {change} (n = {said.images})"


def remark(report: Report) -> str:
    """Return what the rows of accuracy do not show, as a sentence; empty where they show it all."""
    if report.original_unknown:
        return f"Against the original: {report.original_unknown}."
    if report.accuracy_change or not report.when_compressed:
        return ""
    return f"{report.when_compressed[0].upper()}{report.when_compressed[1:]}."


def facts(report: Report) -> Iterable[tuple[str, str]]:
    """Return the model that was compressed, what it cost, and what it and the Program said when that was done."""
    kept = report.original
    if kept is None:
        return
    size = f"{say.count(kept.parameters)} parameters, {say.size(kept.float_bytes)} float32"
    yield "original's cost", f"{say.count(kept.macs)} MACs, {size}"
    if kept.weights_sha256:
        yield "original's weights", kept.weights_sha256
    for said in kept.evaluations:
        figures = [
            ("top-1 of the original", said.original_top1),
            ("top-1 when compressed", said.top1),
            ("agreement when compressed", said.agreement),
        ]
        shown = ", ".join(f"{name} {say.percent(value)}" for name, value in figures if value is not None)
        yield f"{said.images} images of {said.source}", shown or "answers of the original"
