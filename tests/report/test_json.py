from __future__ import annotations

import json

import pytest

from edgevit.report.json import render
from edgevit.report.view import REPORT_SCHEMA, make_report
from tests.report.sample import SHA, manifest, measurement


def test_numbers_are_numbers_and_single_runs_are_left_out() -> None:
    data = json.loads(render(make_report(manifest(), [measurement()], bundle_sha256=SHA)))
    assert data["schema"] == REPORT_SCHEMA
    assert data["bound"]["bound_bytes"] == 420_000
    assert data["branches"][0]["open_rate"] == 0.25
    first = data["measurements"][0]["paths"][0]["cpu"]
    assert first["median_ms"] == pytest.approx(10.045)
    assert first["p99_ms"] is None and first["samples_ms"] == []
    assert data["memory"]["points"] == [] and data["memory"]["peak_bytes"] == 390_000


def test_equal_reports_give_equal_text() -> None:
    assert render(make_report(manifest())) == render(make_report(manifest()))
