from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgevit.errors import BundleError
from edgevit.program.spec import OriginalEvaluation, OriginalSpec
from edgevit.report.view import make_report
from edgevit.schema.manifest import AccuracyRow
from tests.report.sample import SHA, manifest, measurement, path


def test_without_a_measurement_open_rates_are_from_calibration() -> None:
    report = make_report(manifest())
    assert [(r.open_rate, r.open_rate_source) for r in report.branches] == [
        (0.75, "calibration"),
        (0.75, "calibration"),
        (0.75, "calibration"),
        (0.0, "removed"),
    ]
    assert report.mean_branches_open == pytest.approx(2.25)
    assert report.expected_time_change is None and report.memory is None and not report.disturbed
    assert report.measured_peak_bytes == 400_000


def test_a_measurement_fills_rates_times_and_memory() -> None:
    report = make_report(manifest(), [measurement()], bundle_sha256=SHA)
    assert [(r.open_rate, r.open_rate_source) for r in report.branches][:2] == [(0.25, "measured"), (0.0, "measured")]
    assert [r.open_time_ms for r in report.branches] == [2.5, 3.5, 2.6, None]
    assert report.removed_branches == 1 and report.gated_branches == 3
    change = report.expected_time_change
    assert change is not None and change.ratio == pytest.approx(4.0 / 10.045)
    assert report.memory is not None
    assert [(s.label, s.begin_ms, s.end_ms) for s in report.memory.spans] == [
        ("stem", 0.0, 0.1),
        ("0", 0.1, 3.0),
        ("1", 3.0, 6.0),
        ("head", 6.0, 9.0),
    ]


def test_branches_without_a_gate_are_always_on() -> None:
    report = make_report(manifest(gated=False))
    assert [r.open_rate_source for r in report.branches] == ["always", "always", "always", "removed"]
    assert report.gated_branches == 0


def test_the_bound_is_a_limit_only_of_what_it_bounds() -> None:
    facts = manifest()
    arena = dataclasses.replace(facts, bound=dataclasses.replace(facts.bound, arena_bytes=395_000))
    unproven = dataclasses.replace(facts, bound=dataclasses.replace(facts.bound, proven=False))
    process = dataclasses.replace(measurement().memory, of="process")  # type: ignore[type-var]

    def limit(of: object, with_memory: object) -> int | None:
        view = make_report(of, [measurement(memory=with_memory)], bundle_sha256=SHA).memory  # type: ignore[arg-type]
        assert view is not None
        return view.limit_bytes

    assert limit(facts, measurement().memory) == 420_000
    assert limit(arena, measurement().memory) == 395_000
    assert limit(unproven, measurement().memory) is None
    assert limit(facts, process) is None


def test_a_measurement_of_another_bundle_is_refused() -> None:
    with pytest.raises(BundleError, match="is of bundle abababababab, this is cdcdcdcdcdcd"):
        make_report(manifest(), [measurement()], bundle_sha256="cd" * 32)


def test_waiting_for_the_processor_is_noticed() -> None:
    waited = measurement(paths=(path("real", 10.0, 1.0, cpu_ms=5.0),))
    assert make_report(manifest(), [waited], bundle_sha256=SHA).disturbed
    assert not make_report(manifest(), [measurement()], bundle_sha256=SHA).disturbed


def test_accuracy_is_of_the_float_model_and_of_the_bundles_real_path() -> None:
    facts = manifest()
    extra = AccuracyRow(model="bundle", metric="top1", value=0.9, low=0.8, high=1.0, images=9, path="all_open")
    report = make_report(dataclasses.replace(facts, accuracy=(*facts.accuracy, extra)))
    assert report.accuracy_change is not None
    assert (report.accuracy_change.before, report.accuracy_change.after) == (0.751, 0.744)
    assert report.agreement is not None and report.agreement.value == 0.958
    assert make_report(dataclasses.replace(facts, accuracy=())).accuracy_change is None


def row(model: Any, metric: Any, value: float, against: Any = "float") -> AccuracyRow:
    return AccuracyRow(model=model, metric=metric, value=value, low=0.0, high=1.0, images=8, against=against)


def kept(**changes: Any) -> OriginalSpec:
    said = OriginalEvaluation(
        source="val.tar", images=1000, classes=10, agreement=0.782, original_top1=0.751, top1=0.681
    )
    values = {"name": "x", "weights_sha256": "ab", "macs": 5, "parameters": 7, "steps": ("pruned",)}
    return OriginalSpec(**{**values, "evaluations": (said,), **changes})


TOP1 = (row("original", "top1", 0.751), row("compressed", "top1", 0.681), row("bundle", "top1", 0.675))
AGREED = (
    row("compressed", "agreement", 0.875, "original"),
    row("bundle", "agreement", 0.75, "original"),
    row("bundle", "agreement", 0.9),
)


def test_accuracy_is_against_the_original_then_by_step() -> None:
    report = make_report(dataclasses.replace(manifest(), original=kept(), accuracy=(*TOP1, *AGREED)))
    assert report.accuracy_change is not None
    assert (report.accuracy_before, report.accuracy_change.before, report.accuracy_change.after) == (
        "original",
        0.751,
        0.675,
    )
    assert report.compression_points == pytest.approx(-0.07) and report.quantization_points == pytest.approx(-0.006)
    assert report.agreement is AGREED[1] and report.float_agreement is AGREED[2]
    assert report.original_unknown == "" and report.compression == ("pruned",)


def test_an_original_that_is_not_known_on_these_images_is_said() -> None:
    facts = dataclasses.replace(manifest(), original=kept(), accuracy=(*TOP1[1:], AGREED[2]))
    report = make_report(facts)
    assert report.accuracy_before == "compressed" and report.compression_points is None
    assert report.original_unknown == (
        "not known on these images; when it was compressed: top-1 75.1 -> 68.1 %, agreement 78.2 % on 1000 images of "
        "val.tar; --original MODEL compares here"
    )
    old = make_report(dataclasses.replace(facts, original=None))
    assert old.original_unknown.startswith("not known on these images: this Program does not keep it")
    plain = dataclasses.replace(manifest(gated=False, removed=()), accuracy=(AGREED[2],))
    assert make_report(plain).original_unknown == ""


def test_a_manifest_of_the_first_edgevit_is_read() -> None:
    report = make_report(manifest())
    assert (report.accuracy_before, report.original_unknown, report.compression) == ("original", "", ())


def test_without_a_proven_bound_the_growth_of_the_process_is_shown() -> None:
    facts = manifest()
    unproven = dataclasses.replace(facts, bound=dataclasses.replace(facts.bound, proven=False))
    assert make_report(unproven).measured_peak_bytes is None
    assert make_report(unproven, [measurement()], bundle_sha256=SHA).measured_peak_bytes == 22_000_000
