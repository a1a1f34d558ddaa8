"""What reaches a terminal: no control character of a file, no crash of an alphabet, no fault of a closed pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgevit.cli import main, terminal
from edgevit.cli.messages import silent
from edgevit.cli.terminal import CLOSED, Terminal, escaped, plain
from edgevit.errors import OutputError
from edgevit.util.progress import say
from tests.bundles import sample_bundle

STEERING = "a\x1b[31mred\x07\x9b2J\x7f\u202eend"
EDGEVIT = (sys.executable, "-m", "edgevit")


def run(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*EDGEVIT, *arguments], capture_output=True, check=False, env={**os.environ, **environment})


def run_closed(arguments: Sequence[str]) -> tuple[int, bytes]:
    """(exit code, stderr) of a command whose standard output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run([*EDGEVIT, *arguments], stdout=closed, stderr=subprocess.PIPE, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command", [["--help"], ["build", "--help"], ["models", "--json"], ["models"], ["targets"], ["--version"]]
)
def test_a_closed_pipe_ends_a_command_quietly(command: list[str]) -> None:
    assert run_closed(command) == (CLOSED, b"")


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    line = (
        f"{sys.executable} -m edgevit models --all | head -c 1 >&2; echo ${{PIPESTATUS[0]}}"  # more than a pipe holds
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"141\n", b"n")


def test_a_build_stops_between_its_stages_when_nobody_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with silent(True):
            say("Quantizing")
            os.close(reading)
            with pytest.raises(SystemExit) as ended:
                say("Lowering")
    assert ended.value.code == CLOSED


@pytest.mark.parametrize("command", [["targets"], ["--help"], ["models", "--json"]])
def test_a_full_disk_behind_standard_output_is_one_message(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*EDGEVIT, *command], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == OutputError.exit_code
    assert done.stderr == b"edgevit: error: cannot write to standard output: No space left on device\n"


def test_what_standard_error_cannot_take_is_lost_and_the_exit_code_stays() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*EDGEVIT, "targets", "none"], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.returncode == 14


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_the_shell_closed_are_no_fault(closed: str) -> None:
    line = f"{sys.executable} -m edgevit targets {closed}"
    assert subprocess.run(["bash", "-c", line], check=False, capture_output=True).returncode == 0


def test_a_disk_that_is_full_anywhere_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(error: OSError) -> int:
        monkeypatch.setattr("edgevit.doctor.diagnose", lambda: (_ for _ in ()).throw(error))
        return main(["doctor"])

    assert refuse(OSError(28, "No space left on device", "/tmp/x")) == OutputError.exit_code
    assert "edgevit: error: /tmp/x: No space left on device; make room" in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    with pytest.raises(FileNotFoundError) as none:
        tempfile._get_default_tempdir()  # type: ignore[attr-defined]
    assert refuse(none.value) == OutputError.exit_code
    assert "set TMPDIR" in capsys.readouterr().err
    with pytest.raises(OSError, match="strange"):
        refuse(OSError(5, "strange"))


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


def test_an_ascii_terminal_crashes_no_command(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "Bündel–1", labels=[f"Käfer {i}" for i in range(10)], changes={"name": "Käfer"})
    told = run(["report", str(folder)], **ASCII)
    assert told.returncode == 0 and told.stdout.isascii() and b"K\\u00e4fer" in told.stdout and not told.stderr
    assert b"\\u2013" not in told.stdout  # signs of the report have plain forms
    told = run(["report", "--json", str(folder)], **ASCII)
    assert told.returncode == 0 and told.stdout.isascii() and json.loads(told.stdout)["name"] == "Käfer"
    told = run(["verify", str(tmp_path / "Käse")], **ASCII)
    assert told.returncode == 19 and b"K\\u00e4se does not exist" in told.stderr
    told = run(["profile", str(folder), "--runs", "2"], **ASCII)
    assert told.returncode == 0 and b"B\\u00fcndel" in told.stdout


def test_a_name_that_is_no_text_is_shown_and_stays_valid_json() -> None:
    told = subprocess.run([*EDGEVIT, "verify", b"\xff\xfe"], capture_output=True, check=False)
    assert told.returncode == 19 and b"edgevit: error: \\udcff\\udcfe does not exist" in told.stderr


@dataclass(frozen=True, kw_only=True)
class Named:
    names: tuple[str, ...]
    more: dict[str, list[str]]
    count: int = 3


def test_control_characters_are_written_out_and_json_reads_them_back() -> None:
    assert escaped("line\n\tdown é –") == "line\n\tdown é –"
    assert escaped(STEERING) == r"a\u001b[31mred\u0007\u009b2J\u007f\u202eend"
    assert json.loads(escaped(json.dumps(STEERING, ensure_ascii=False))) == STEERING
    value = Named(names=("\x1b", "b"), more={"\x07": ["\x9b"]})
    assert plain(value) == Named(names=(r"\u001b", "b"), more={r"\u0007": [r"\u009b"]})


def test_no_file_steers_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sample_bundle(tmp_path / "out", changes={"name": STEERING})
    monkeypatch.setenv("FORCE_COLOR", "1")  # where escape sequences of the report itself are wanted
    for command in (["report", str(folder)], ["report", str(folder), "--json"], ["verify", str(folder)]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert r"\u009b2J\u007f\u202eend" in shown and "\x1b[31mred" not in shown
    assert main(["verify", f"{tmp_path}/{STEERING}"]) == 19
    assert r"red\u0007\u009b2J" in capsys.readouterr().err
    assert main(["targets", "--", STEERING]) == 14 and main([STEERING]) == 2
    assert not set("\x1b\x07\x9b\x7f") & set(capsys.readouterr().err)


def test_what_edgevit_draws_itself_keeps_its_colours(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.guarded():
        assert isinstance(sys.stdout, Terminal)
        sys.stdout.styled.write("\x1b[1mbold\x1b[0m")
        sys.stdout.write("\x1b[1m")
    assert capsys.readouterr().out == "\x1b[1mbold\x1b[0m\\u001b[1m"


def test_progress_is_drawn_at_a_terminal() -> None:
    """Bars are escape sequences, and still come through."""
    master, slave = pty.openpty()
    program = (
        "from edgevit.cli.terminal import guarded\nfrom edgevit.util.progress import track\n"
        "with guarded():\n    list(track(range(3), 'Working'))\n"
    )
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", program], stderr=slave, check=False, env=environment)
    os.close(slave)
    shown = os.read(master, 1 << 16)
    os.close(master)
    assert done.returncode == 0 and b"\x1b[" in shown and b"\\u001b" not in shown and b"Working" in shown


def test_main_gives_the_streams_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert main(["targets", "none"]) == 14
    assert (sys.stdout, sys.stderr) == before


def test_a_library_that_closes_its_stream_leaves_ours_open() -> None:
    inner = io.StringIO()
    terminal = Terminal(inner, None)
    terminal.close()
    terminal.write("after")
    assert inner.getvalue() == "after"
