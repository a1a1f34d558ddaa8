"""Budgets: read from a line, and held against a build and what a device measured; what is not known is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgevit.errors import TargetError
from edgevit.schema.budget import BUDGETS, check_budgets, read_budget
from edgevit.schema.claims import AccuracyFigures, AccuracyResult, Claim, Fraction, OriginalResult
from edgevit.schema.manifest import BundleFile, Manifest
from edgevit.schema.measurement import Measurement
from tests.bundles import sample_manifest
from tests.report.sample import measurement as sample_measurement
from tests.tiny import tiny_program


def manifest(**budgets: Any) -> Manifest:
    made = sample_manifest(tiny_program(gated=True))
    return replace(made, target=replace(made.target, **budgets))


def held(made: Manifest, measurement: Measurement | None = None) -> dict[str, bool | None]:
    return {check.key: check.held for check in check_budgets(made, measurement)}


def test_a_line_of_budgets_is_read() -> None:
    assert read_budget("ram=8, flash_mb=6.5,latency=30,drop=0") == {
        "ram_mb": 8.0,
        "flash_mb": 6.5,
        "latency_ms": 30.0,
        "drop_points": 0.0,
    }


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["got '', allowed: ram=NUMBER, flash=NUMBER, latency=NUMBER, drop=NUMBER"]),
        ("ram", ["ram: got ''"]),
        ("ram=0", ["ram: got '0', allowed: a number above 0"]),
        ("ram=nan,latency=inf", ["ram: got 'nan'", "latency: got 'inf'"]),
        ("ram=8,ram_mb=9", ["ram_mb is given twice"]),
        ("speed=3,flash=8MB", ["got 'speed=3'", "flash: got '8MB'"]),
    ],
)
def test_all_that_is_wrong_is_said(text: str, faults: list[str]) -> None:
    with pytest.raises(TargetError, match=f"the budget has {len(faults)} fault") as caught:
        read_budget(text)
    assert all(fault in str(caught.value) for fault in faults)


def test_nothing_asked_is_nothing_held() -> None:
    assert check_budgets(manifest()) == ()


def test_what_is_proven_can_break_the_budget_of_memory_but_not_meet_it() -> None:
    assert held(manifest(ram_mb=0.4)) == {"ram_mb": False}  # the bound is 0.42 MB
    assert held(manifest(ram_mb=64)) == {"ram_mb": None}


def test_without_a_device_no_time_is_known() -> None:
    (check,) = check_budgets(manifest(latency_ms=1000))
    assert check.held is None and check.value is None and "no device was measured" in check.what


def test_a_device_tells_memory_and_time() -> None:
    made, measured = manifest(ram_mb=1000, latency_ms=1000), sample_measurement()
    environment = replace(measured.environment, arch=made.target.arch)
    measured = replace(measured, environment=environment)
    assert held(made, measured) == {"ram_mb": True, "latency_ms": True}
    assert held(replace(made, target=replace(made.target, latency_ms=1e-6)), measured)["latency_ms"] is False


def test_another_device_meets_no_budget() -> None:
    made, measured = manifest(ram_mb=1000, latency_ms=1000), sample_measurement()
    other = replace(measured, environment=replace(measured.environment, arch="riscv64"))
    checks = check_budgets(made, other)
    assert {check.held for check in checks} == {None}
    assert all("not the device this was built for" in check.what for check in checks)


def test_files_of_the_device_are_the_model_and_its_program() -> None:
    made = manifest(flash_mb=0.1)
    made = replace(made, sizes=replace(made.sizes, model_bytes=80_000))
    (check,) = check_budgets(made)
    assert check.held and check.value == 0.08 and "without onnxruntime" in check.what
    native = BundleFile(path="runner/native/runner", bytes=30_000, sha256="0" * 64)
    (check,) = check_budgets(replace(made, files=(native,)))
    assert check.held is False and check.value == pytest.approx(0.11) and "without" not in check.what


def test_points_lost_are_against_the_original() -> None:
    made = manifest(drop_points=2)
    assert held(made) == {"drop_points": None}
    share = Fraction(hits=97, images=100, value=0.97, low=0.92, high=0.99)
    shared: dict[str, Any] = {"top1": None, "float_top1": None, "drop": None}
    result = AccuracyResult(
        agreement=share, cosine_mean=1, cosine_min=1, min_agreement=0.9, max_top1_drop=0.1, **shared
    )
    against = OriginalResult(agreement=share, compressed_agreement=None, quantized_agreement=share)
    figures = AccuracyFigures(against_float=result, against_original=against)
    made = replace(made, claims=(Claim(name="accuracy", held=True, summary="", figures=figures),))
    (check,) = check_budgets(made)
    assert check.held is False and check.value == pytest.approx(3) and "agreement on 100 images" in check.what


def test_every_budget_is_a_key_of_the_target() -> None:
    target = manifest().target
    assert all(getattr(target, key) is None for key in BUDGETS)
