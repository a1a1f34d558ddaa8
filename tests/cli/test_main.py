"""The command group: lists what exists, answers fast, turns errors into one message and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit import errors
from edgevit.cli import COMMANDS, cli, main
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
    assert "interrupted; no partial output was left" in capsys.readouterr().err


def test_a_request_to_end_has_its_own_code_and_says_nothing() -> None:
    """While a command is at work, with standard output and error open."""
    program = (
        "import os, signal, sys\nfrom edgevit import doctor\nfrom edgevit.cli import main\n"
        "doctor.diagnose = lambda: os.kill(os.getpid(), signal.SIGTERM)\nsys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"", b"")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        OSError(12, "Cannot allocate memory"),
        errors.BundleError("a fresh process cannot load and run the model: MemoryError"),
    ],
)
def test_memory_that_ran_out_is_no_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "main", fail)
    assert main(["doctor"]) == errors.OutOfMemoryError.exit_code == 22
    said = capsys.readouterr().err
    assert said.startswith("edgevit: error: there is not enough memory") and said.count("\n") == 1


def test_what_looks_like_a_bug_where_nothing_can_be_had_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise SystemError("error return without exception set")

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemError):
        main(["doctor"])
    monkeypatch.setattr("mmap.mmap", lambda *_: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")))
    assert main(["doctor"]) == errors.OutOfMemoryError.exit_code


def test_errors_of_other_processes_keep_their_kind() -> None:
    told = errors.of_process("edgevit.errors.OutputError: /tmp cannot be written: File too large; make room")
    assert isinstance(told, errors.OutputError) and str(told) == "/tmp cannot be written: File too large; make room"
    for line in ("ValueError: x", "edgevit.errors.annotations: x", "other.OutputError: x", ""):
        assert errors.of_process(line) is None


def test_a_request_to_end_stays_one_where_native_code_makes_an_error_of_it() -> None:
    """As a compiler does that calls Python for each of its passes."""
    program = """
import signal, sys
from edgevit import doctor
from edgevit.cli import main
def compiles():
    try:
        signal.raise_signal(getattr(signal, sys.argv[1]))
    except BaseException as error:
        raise RuntimeError(str(error)) from None
doctor.diagnose = compiles
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["doctor"]))
"""
    for name, code, said in (
        ("SIGTERM", 143, ""),
        ("SIGINT", 130, "edgevit: interrupted; no partial output was left.\n"),
    ):
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, said)


def test_a_request_to_end_is_not_lost_where_python_lets_no_exception_through() -> None:
    """Such as in what runs when a process forks, or an object goes."""
    program = """
import signal, sys, time
from edgevit import cli
class Goes:
    def __del__(self):
        signal.raise_signal(getattr(signal, sys.argv[1]))
        time.sleep(0)
def command(**_):
    Goes()
    time.sleep(20)
signal.signal(signal.SIGINT, signal.default_int_handler)
real, cli.cli.main = cli.cli.main, command
try:
    code = cli.main([])
except KeyboardInterrupt:
    code = 130
sys.exit(code)
"""
    for name, code in (("SIGTERM", 143), ("SIGINT", 130)):
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")
