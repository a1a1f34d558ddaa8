"""A bundle of schema 1, as the edgevit before this schema built it: opened, run, profiled and reported as ever."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevit.bundle.read import load_golden, open_bundle
from edgevit.cli import main
from edgevit.devices import local
from edgevit.errors import BundleError
from edgevit.report.view import make_report
from edgevit.schema.claims import (
    FIGURES,
    AccuracyFigures,
    BoundFigures,
    CoverageFigures,
    ParityFigures,
    SkipFigures,
    figures_of,
)
from edgevit.schema.manifest import Manifest
from edgevit.schema.manifest_file import parse_manifest
from edgevit.util.strict_json import to_data
from tests.bundle.test_read import change_anywhere
from tests.bundles import includes

# The gated tiny Program of two blocks for x86-64-onnxruntime, packed with deflate.
BUNDLE = Path(__file__).with_name("schema1") / "tiny.zip"


def written() -> dict:  # type: ignore[type-arg]
    with zipfile.ZipFile(BUNDLE) as archive:
        data: dict = json.loads(archive.read("manifest.json"))  # type: ignore[type-arg]
    return data


def test_it_is_of_schema_1_and_its_figures_have_types_now() -> None:
    old = written()
    figures = {claim["name"]: claim["figures"] for claim in old["claims"]}
    assert old["schema"] == 1 and figures.keys() == FIGURES.keys()
    with open_bundle(BUNDLE) as bundle:
        claims = bundle.manifest.claims
    parity, skip = figures_of(claims, ParityFigures), figures_of(claims, SkipFigures)
    coverage, bound = figures_of(claims, CoverageFigures), figures_of(claims, BoundFigures)
    accuracy = figures_of(claims, AccuracyFigures)
    assert parity and skip and coverage and bound and accuracy
    held = {"float": to_data(parity.against_float), "lowered": to_data(parity.against_lowered)}
    assert includes(held, figures["parity"])
    assert figures["skip"] == {"nodes": to_data(skip.nodes), "time": {"macs_ratio": skip.macs_ratio}}
    assert figures["coverage"] == to_data(coverage) and figures["bound"] == to_data(bound)
    original = {"original": to_data(accuracy.against_original)}
    assert includes(to_data(accuracy.against_float) | original, figures["accuracy"])
    assert [(claim.name, claim.held, claim.summary) for claim in claims] == [
        (claim["name"], claim["held"], claim["summary"]) for claim in old["claims"]
    ]


def test_all_else_says_what_it_said() -> None:
    old = written()
    with open_bundle(BUNDLE) as bundle:
        now = to_data(bundle.manifest)
        assert all(len(array) for case in bundle.manifest.golden for array in load_golden(bundle, case))
    assert includes(now | {key: old[key] for key in ("schema", "claims")}, old)


def test_its_golden_outputs_are_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert [result.held for result in local.verify(BUNDLE).golden] == [True, True, True]
    assert main(["verify", str(BUNDLE)]) == 0
    assert "files intact" in capsys.readouterr().out


def test_its_own_runner_runs_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(BUNDLE) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-I", str(tmp_path / "runner" / "run.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 golden outputs as expected" in done.stdout


def test_it_is_profiled_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "tiny.json", tmp_path / "tiny.html"
    assert main(["profile", str(BUNDLE), "--runs", "4", "-o", str(out)]) == 0
    assert main(["report", str(BUNDLE), str(out), "--html", str(page)]) == 0
    capsys.readouterr()
    assert main(["report", str(BUNDLE), str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Proven at build time" in shown and "10 of 10 Gemm int8" in shown
    assert "what ONNX Runtime&#39;s arena has in use" in page.read_text(encoding="utf-8")


def test_the_report_within_it_is_the_report_of_today() -> None:
    with zipfile.ZipFile(BUNDLE) as archive:
        inside = json.loads(archive.read("report.json"))
    with open_bundle(BUNDLE) as bundle:
        report = to_data(make_report(bundle.manifest))
    assert includes(report | {key: inside[key] for key in ("schema", "claims")}, inside)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_in_it_is_a_bundle_error_or_a_manifest(data: st.DataObject) -> None:
    document = written() | {"sha256": ""}
    change_anywhere(document, data)
    try:
        assert isinstance(parse_manifest(json.dumps(document).encode(), BUNDLE), Manifest)
    except BundleError as error:
        assert str(error)
