"""The command group: lists what exists, answers fast, turns errors into one message and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit import errors
from edgevit.cli import COMMANDS, main
from edgevit.cli.exit_codes import exit_codes, markdown_table
from edgevit.schema.target import list_targets


def test_every_command_exists_and_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert "Example" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from edgevit.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    for heavy in ("'numpy'", "'onnx'", "'torch'", "'rich'", "'PIL'"):
        assert heavy not in loaded


def test_exit_codes_differ_and_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [row.code for row in exit_codes()]
    assert len(set(codes)) == len(codes)
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{code}  " in shown for code in codes)


def test_contributing_holds_the_table_of_exit_codes() -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert markdown_table() in text


def test_a_mistyped_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["biuld"]) == 2
    assert "'build'" in capsys.readouterr().err


def test_targets_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    assert [t["name"] for t in json.loads(capsys.readouterr().out)] == list(list_targets())
    assert main(["targets", "x86-64-avx2-onnxruntime"]) == 0
    assert "vpmaddubsw" in capsys.readouterr().out
    assert main(["targets", "nothing"]) == errors.TargetError.exit_code


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    health = json.loads(capsys.readouterr().out)
    assert {t["name"] for t in health["targets"]} == set(list_targets())
    assert {p["name"] for p in health["packages"] if p["version"]} >= {"numpy", "onnxruntime"}
    assert main(["doctor"]) == 0


def test_doctor_names_the_install_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevit import doctor
    from edgevit.build import host

    for module in (doctor, host):
        monkeypatch.setattr(module, "installed", lambda name: None if name in ("openvino", "torch") else "1.0")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "pip install 'edgevit[openvino]'" in shown
    assert "pip install 'edgevit[train]'" in shown
    assert "cannot be built" in shown


def test_interruption_is_one_line_and_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevit import doctor

    monkeypatch.setattr(doctor, "diagnose", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["doctor"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_request_to_end_has_its_own_code_and_says_nothing() -> None:
    """While a command is at work, with standard output and error open."""
    program = (
        "import os, signal, sys\nfrom edgevit import doctor\nfrom edgevit.cli import main\n"
        "doctor.diagnose = lambda: os.kill(os.getpid(), signal.SIGTERM)\nsys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"", b"")
