"""`edgevit sign` and `edgevit verify --key` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevit.cli import main
from tests.bundles import sample_bundle
from tests.keys import write_key


@pytest.fixture
def place(tmp_path: Path) -> Path:
    sample_bundle(tmp_path / "tiny")
    write_key(tmp_path / "my.key")
    return tmp_path


def test_a_bundle_is_signed_and_the_signature_checked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, key = str(place / "tiny"), str(place / "my.key")
    assert main(["verify", bundle]) == 0
    assert "not signed: nothing shows who made it" in capsys.readouterr().out
    assert main(["sign", bundle, "--key", key]) == 0
    assert capsys.readouterr().out == f"Signature: {place / 'tiny.sig'}\n"
    assert main(["verify", bundle]) == 0
    assert "was not checked: give its" in capsys.readouterr().out
    for form in (bundle, f"{bundle}.zip"):
        assert main(["verify", form, "--key", str(place / "my.pub")]) == 0
        assert "signed by the owner of the key" in capsys.readouterr().out
    assert main(["verify", bundle, "--key", str(place / "my.pub"), "--run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "holds"


def test_a_signature_is_replaced_only_with_force_and_nothing_else_ever(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sign", str(place / "tiny.zip"), "--key", str(place / "my.key"), "-o", str(place / "a.sig")]
    assert main(command) == 0
    assert main(command) == 16
    assert main([*command, "--force"]) == 0
    (place / "a.sig").write_text("my thesis")
    assert main([*command, "--force"]) == 16
    assert (place / "a.sig").read_text() == "my thesis"
    assert (
        main(["verify", str(place / "tiny"), "--key", str(place / "my.pub"), "--signature", str(place / "a.sig")]) == 24
    )
    assert capsys.readouterr().err.count("edgevit: error:") == 3


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["verify", "tiny", "--key", "my.pub"], 24, "it is not signed"),
        (["verify", "tiny", "--key", "my.key"], 24, "a public key verifies"),
        (["verify", "tiny", "--signature", "x.sig"], 2, "--signature is for --key"),
        (["sign", "tiny", "--key", "my.pub"], 24, "the private key signs"),
        (["sign", "gone", "--key", "my.key"], 19, "does not exist"),
        (["sign", "tiny"], 2, "--key"),
        (["sign", "tiny", "--key", "my.key", "-o", "no/such.sig"], 16, "cannot write"),
    ],
)
def test_what_cannot_be_is_one_error(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(place)
    assert main(arguments) == status
    assert said in capsys.readouterr().err
    assert not (place / "tiny.sig").exists()


def test_another_version_of_the_runtime_is_said_where_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = {"edgevit": "0.1.0", "onnxruntime": "1.30.2"}
    bundle = str(sample_bundle(tmp_path / "old", changes={"tools": tools}))
    assert main(["verify", bundle]) == 0
    assert capsys.readouterr().err == ""
    assert main(["verify", bundle, "--run"]) == 0
    assert "the bundle was verified, its memory proven, with 1.30.2" in capsys.readouterr().err
    assert main(["profile", bundle, "--runs", "4", "-o", str(tmp_path / "m.json")]) == 0
    assert "with 1.30.2" in " ".join(json.loads((tmp_path / "m.json").read_text())["warnings"])
