"""`edgevit compare`: any bundles and measurements, its forms, and exit codes of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import edgevit
from edgevit.cli import main
from edgevit.errors import ComparisonError, RegressionError
from edgevit.schema.measurement_file import write_measurement
from tests.bundles import RECIPE, sample_bundle
from tests.report.sample import measurement


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    sample_bundle(root / "one")
    sample_bundle(root / "two", depth=3, changes={"recipe": dataclasses.replace(RECIPE, model="other")})
    for name, ms in (("one", 4.0), ("two", 5.0)):
        with edgevit.open_bundle(root / name) as bundle:
            measured = measurement(bundle_sha256=bundle.sha256, expected_cpu_ms=ms)
        write_measurement(measured, root / f"{name}.json")
    return root


def run(folder: Path, *arguments: str) -> int:
    return main(["compare", *(str(folder / a) if (folder / a).exists() else a for a in arguments)])


def test_builds_of_several_models_with_their_measurements(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "one", "two", "one.json", "two.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(c["name"], c["model"]) for c in told["columns"]] == [("one", "tiny"), ("two", "other")]
    latency = next(row for row in told["rows"] if row["name"] == "latency")
    assert latency["values"] == [4.0, 5.0] and latency["changes"][1] == pytest.approx(0.25)


def test_a_measurement_of_an_earlier_build_has_a_column_and_a_word(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_measurement(measurement(bundle_sha256="cd" * 32), tmp_path / "old.json")
    assert run(folder, "one", str(tmp_path / "old.json")) == 0
    out, err = capsys.readouterr()
    assert "old against one" in " ".join(out.split())
    assert "warning: a measurement is of another build of tiny (cdcdcdcdcdcd) than the one given" in err


def test_measurements_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "one.json", "two.json") == 0
    assert "two against one: latency +25.0 %" in " ".join(capsys.readouterr().out.split())


def test_a_crossed_limit_has_its_own_exit_code_and_the_answer_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("one", "two", "one.json", "two.json", "--fail-if", "latency>+5%", "--fail-if", "latency>1s")
    assert run(folder, *given, "--json") == RegressionError.exit_code == 41
    out, err = capsys.readouterr()
    assert [v["crossed"] for v in json.loads(out)["verdicts"]] == [True, False]
    assert err == "edgevit: error: 1 of 2 limits crossed: latency>+5%: two has 5.00 ms (+25.0 %)\n"
    assert run(folder, *given[:4], "--fail-if", "latency>+30%") == 0
    assert run(folder, "one", "two", "--fail-if", "latency>+5%") == ComparisonError.exit_code == 40
    out, err = capsys.readouterr()
    assert "What changed" in out and "not known" in out and err.count("\n") == 1
    assert "the time of an image, expected of one is not known; give a measurement of it (edgevit profile)\n" in err
    assert run(folder, "one", "two", "--fail-if", "latency>+5%", "--json") == 40
    assert [v["crossed"] for v in json.loads(capsys.readouterr().out)["verdicts"]] == [None]
    page = folder / "undecided.html"
    assert run(folder, "one", "two", "--fail-if", "latency>+5%", "--html", str(page)) == 40 and page.is_file()
    with pytest.raises(ComparisonError, match="is not known"):
        edgevit.compare(folder / "one", folder / "two", fail_if=["latency>+5%"])


def test_its_forms(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "one", "two", "--markdown") == 0
    told = capsys.readouterr().out
    assert "### What changed" in told and "<details>" in told and "| ---: |" in told
    page = tmp_path / "page.html"
    assert run(folder, "one", "two", "--html", str(page)) == 0
    assert "What changed" in page.read_text(encoding="utf-8")
    assert run(folder, "one", "two", "--html", str(page)) == 16
    assert run(folder, "one", "two", "--html", str(page), "--force") == 0
    assert run(folder, "one", "two", "--markdown", "--json") == 2


def test_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "one") == 2
    assert run(folder, "one", "one.zip") == 40
    assert "once more" in capsys.readouterr().err
    assert run(folder, "one", "one.json") == 40
    assert run(folder, "one", "/nowhere") == 19
    (tmp_path / "x.json").write_text("{}")
    assert run(folder, "one", str(tmp_path / "x.json")) == 19
    assert run(folder, "one", "two", "--fail-if", "size") == 40


def test_two_devices_of_one_build(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "again.json"
    copy.write_bytes((folder / "one.json").read_bytes())
    assert run(folder, "one", "one.json", str(copy), "--json") == 0
    names = [column["name"] for column in json.loads(capsys.readouterr().out)["columns"]]
    assert names == ["one on Great CPU 9000 (1)", "one on Great CPU 9000 (2)"]
