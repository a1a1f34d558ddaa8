"""What counts as written by edgevit: files, whatever their version, and nothing that only looks like it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from edgevit.report import html
from edgevit.report.view import make_report
from edgevit.schema.measurement_file import write_measurement
from edgevit.util.ownership import Kind, foreign
from tests.report.sample import manifest, measurement


def test_a_page_of_today_and_one_without_the_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render(make_report(manifest())))
    assert '<meta name="generator" content="edgevit ' in page.read_text()
    assert foreign(page, "page") == []
    page.write_text("\n".join(line for line in page.read_text().splitlines() if "generator" not in line))
    assert foreign(page, "page") == []  # 0.1.0 wrote none
    page.write_text("<!doctype html><title>About edgevit</title>")
    assert foreign(page, "page") == ["page.html"]


def test_a_measurement_and_other_json(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_measurement(measurement(), path)
    assert foreign(path, "measurement") == []
    path.write_text(json.dumps({"schema": 1, "bundle": "mine"}))
    assert foreign(path, "measurement") == ["m.json"]


@pytest.mark.parametrize("kind", ["archive", "measurement", "page", "log", "result", "signature", "messages"])
def test_no_kind_is_a_folder_or_something_else(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\x00 something else")
    assert foreign(tmp_path / "file", kind) == ["file"]
    assert foreign(tmp_path, kind) == [tmp_path.name]


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", '{"schema": true}', "1e999", '{"files": [1]}'])
@pytest.mark.parametrize(("kind", "name"), [("bundle", "manifest.json"), ("program", "program.json")])
def test_odd_json_is_not_ours(kind: Kind, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert foreign(tmp_path, kind) == [name]


def signature(**statement: Any) -> str:
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps({"mediaType": "x", "verificationMaterial": {}, "dsseEnvelope": {"payload": payload}})


def test_a_signature_of_something_else_is_not_ours(tmp_path: Path) -> None:
    """Those of containers and packages have the same form."""
    path, kind = tmp_path / "a.sig", "https://model_signing/signature/v1.0"
    path.write_text(signature(predicateType=kind, predicate={"resources": [{"name": "manifest.json"}]}))
    assert foreign(path, "signature") == []
    for other in (
        signature(predicateType="https://slsa.dev/provenance/v1", predicate={"resources": [{"name": "manifest.json"}]}),
        signature(predicateType=kind, predicate={"resources": [{"name": "weights.bin"}]}),
        signature(predicateType=kind, predicate={"resources": 5}),
        signature(),
        json.dumps({"mediaType": "x", "verificationMaterial": {}, "dsseEnvelope": {"payload": "?"}}),
    ):
        path.write_text(other)
        assert foreign(path, "signature") == ["a.sig"]


def test_of_many_files_some_are_named(tmp_path: Path) -> None:
    for index in range(100):
        (tmp_path / f"{index:03}.jpg").touch()
    assert foreign(tmp_path, "bundle")[:2] == ["000.jpg", "001.jpg"] and len(foreign(tmp_path, "bundle")) == 20
