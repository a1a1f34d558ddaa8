"""What a report says of the original model: the first screen's accuracy, and how the bundle's model was made of it."""

from __future__ import annotations

from collections.abc import Iterable

from edgevit.report import text as say
from edgevit.report.view import Report


def tile(report: Report) -> tuple[str, str, str]:
    """The bundle against the original, then which step lost how much; without the original, that it is not known."""
    change, agreement, quantized = report.accuracy_change, report.agreement, report.float_agreement
    unknown = f"; against the original: {report.original_unknown}" if report.original_unknown else ""
    if change:
        before = "compressed float model" if report.accuracy_before == "compressed" else "original"
        note = f"{before} {say.percent(change.before)}, {say.points(change.after - change.before)}"
        if report.compression_points is not None and report.quantization_points is not None:
            shares = [100 * points for points in (report.compression_points, report.quantization_points)]
            note += f": {shares[0]:+.1f} by compression, {shares[1]:+.1f} by quantization"
        return ("Top-1", say.percent(change.after), note + unknown)
    if agreement and agreement.against == "original":
        note = f"on {agreement.images} images"
        if quantized:
            note += f"; with the compressed float model {say.percent(quantized.value)}"
        if report.when_compressed:
            note += f"; {report.when_compressed}"
        return ("Agreement with the original", say.percent(agreement.value), note)
    if agreement:
        name = "Agreement with compressed float" if unknown else "Agreement with float"
        return (name, say.percent(agreement.value), f"on {agreement.images} images{unknown}")
    return ("Accuracy", say.UNKNOWN, "not measured")


def facts(report: Report) -> Iterable[tuple[str, str]]:
    """The model that was compressed, what it cost, and what it and the Program said when that was done."""
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
