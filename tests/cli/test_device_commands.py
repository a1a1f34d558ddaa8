"""`verify`, `profile` and `report`, as a person runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgevit.cli import main
from edgevit.devices import confined, local
from tests.bundles import rehash, rewrite, sample_bundle


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def bundle(shared: Path, tmp_path: Path) -> Path:
    shutil.copytree(shared, tmp_path / "tiny")
    shutil.copy(shared.parent / "tiny.zip", tmp_path / "tiny.zip")
    return tmp_path / "tiny"


def test_verify_says_what_it_checked(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--run"]) == 0
    text = capsys.readouterr().out
    assert "files intact, sha256 " in text and text.count("gates equal") == 3 and "not checked" not in text
    assert main(["verify", str(bundle.parent / "tiny.zip"), "--json", "--run"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [case["held"] for case in data["golden"]] == [True] * 3 and data["run"]


def test_verify_runs_nothing_unless_it_is_told_to(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "loaded", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(confined, "call", lambda *_: pytest.fail("a process was started"))
    assert main(["verify", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "files intact, sha256 " in text and "gates equal" not in text
    assert "not checked: what it computes; --run runs its 3 golden inputs" in text
    assert main(["verify", str(bundle), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["golden"] == [] and data["run"] is False
    for option in ("--threads", "--timeout"):
        assert main(["verify", str(bundle), option, "2"]) == 2
        assert f"{option} is for --run" in capsys.readouterr().err


def test_verify_looks_at_the_golden_arrays_as_data(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(bundle / "golden/real.logits.npy", np.zeros((1, 11), np.float32))
    rehash(bundle)
    assert main(["verify", str(bundle)]) == 19
    assert (
        "golden/real.logits.npy in the bundle is float32 [1, 11], expected float32 [1, 10]" in capsys.readouterr().err
    )


def test_verify_fails_on_damage_and_on_another_output(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "labels.json").write_text("[]")
    assert main(["verify", str(bundle)]) == 19
    assert "labels.json: not listed" in capsys.readouterr().err
    (bundle / "labels.json").unlink()
    data = json.loads((bundle / "manifest.json").read_text())
    data["golden"][0]["effort"], data["golden"][1]["effort"] = data["golden"][1]["effort"], data["golden"][0]["effort"]
    rewrite(bundle, data)
    assert main(["verify", str(bundle), "--run"]) == 31
    assert "gates that changed: b00_mhsa, b00_ffn, b01_mhsa, b01_ffn" in capsys.readouterr().err


def test_profile_then_report(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(bundle), "--runs", "3"]) == 0
    captured = capsys.readouterr()
    assert "no --images given" in captured.err and "all_skipped" in captured.out
    measurement = bundle.parent / "tiny.measurement.json"
    assert json.loads(measurement.read_text())["images"]["golden"]
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["tiny", "tiny.measurement.json", "tiny.zip"]

    page = bundle.parent / "page.html"
    assert main(["report", str(bundle.parent / "tiny.zip"), str(measurement), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert main(["report", str(bundle), str(measurement), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measurements"][0]["paths"][0]["wall"]["runs"] == 3
    assert main(["report", str(bundle), str(measurement)]) == 0
    assert "b01_ffn" in capsys.readouterr().out


def test_nothing_is_overwritten_without_force(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = bundle.parent / "mine"
    mine.write_text("dear")
    assert main(["profile", str(bundle), "--runs", "1", "-o", str(mine)]) == 16
    assert main(["report", str(bundle), "--html", str(mine)]) == 16
    assert mine.read_text() == "dear"
    assert "--force" in capsys.readouterr().err
    for command in (["report", str(bundle), "--html"], ["profile", str(bundle), "--runs", "1", "-o"]):
        assert main([*command, str(mine), "--force"]) == 16  # not even then: it is nothing that edgevit wrote
        assert "it will not be replaced" in capsys.readouterr().err
        assert mine.read_text() == "dear"
        own = bundle.parent / "own"
        assert main([*command, str(own)]) == 0 and main([*command, str(own), "--force"]) == 0
        own.unlink()
        own.symlink_to(mine)
        assert main([*command, str(own), "--force"]) == 16
        assert "is a link" in capsys.readouterr().err
        own.unlink()


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read as a measurement"), ("{}", "schema None"), ('{"schema": 1}', "missing key 'bundle'")],
)
def test_a_file_that_is_no_measurement_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    wrong = bundle.parent / "wrong.json"
    wrong.write_text(content)
    assert main(["report", str(bundle), str(wrong)]) == 19
    assert said in capsys.readouterr().err


def test_wrong_images_are_one_clear_error(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = bundle.parent / "empty"
    empty.mkdir()
    assert main(["profile", str(bundle), "--images", str(empty)]) == 15
    assert main(["profile", str(bundle.parent / "nowhere")]) == 19
    assert "does not exist" in capsys.readouterr().err
