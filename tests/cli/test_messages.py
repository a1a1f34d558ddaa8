"""What a command shows and keeps of its messages, and how it tells an error."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgevit.cli import COMMANDS, main
from edgevit.cli.build import STAGES
from edgevit.cli.messages import shown
from edgevit.cli.terminal import WIDTH, fitted
from edgevit.errors import BundleError, OutputError
from edgevit.util import progress
from edgevit.util.progress import LOGGER, Overall, clock, drawn, note, overall, say, track, warn


@pytest.fixture
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """`edgevit doctor` says all there is to say, and then fails."""

    def diagnose() -> None:
        progress.detail("a detail")
        say("a step")
        note("a note")
        warn("a doubt \x1b[31m")
        raise BundleError("two\nlines")

    monkeypatch.setattr("edgevit.doctor.diagnose", diagnose)


@pytest.mark.usefixtures("talking")
@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ([], ["edgevit: a step\n", "edgevit: note: a note\n", "edgevit: warning: a doubt"], ["a detail", "Traceback"]),
        (["--quiet"], ["edgevit: warning: a doubt"], ["a step", "a note", "a detail"]),
        (["-v"], ["s] a step", "s] a detail", "Traceback"], []),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_how_much_is_shown(
    options: list[str], there: list[str], absent: list[str], before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "doctor"] if before else ["doctor", *options]) == BundleError.exit_code
    told = capsys.readouterr().err
    assert all(line in told for line in there) and not any(line in told for line in absent)
    assert told.endswith("edgevit: error: two\nlines\n") and "\x1b" not in told


@pytest.mark.usefixtures("talking")
def test_a_file_keeps_every_message_and_is_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "edgevit.log"
    for _ in range(2):
        assert main(["--quiet", "--log-file", str(log), "doctor", "--json"]) == BundleError.exit_code
    kept = log.read_text(encoding="utf-8")
    for line in ("DEBUG a detail", "INFO a step", "INFO note: a note", r"WARNING a doubt \u001b[31m", "DEBUG edgevit "):
        assert kept.count(line) == 2
    assert "ERROR error: two\n    lines\n" in kept and "Traceback" in kept
    assert LOGGER.handlers == [] or not any(type(each).__name__ == "_ToFile" for each in LOGGER.handlers)


@pytest.mark.parametrize("content", [b"my notes\n", b"\x08\0\0\0\0\0\0\0{}      ", b"2026-11-29 DEBUG edgevit 1\n"])
@pytest.mark.parametrize("linked", [False, True])
def test_messages_are_added_to_messages_only(
    content: bytes, linked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights with a line behind them are none any more."""
    path = tmp_path / "mine"
    path.write_bytes(content)
    if linked:
        (tmp_path / "link").symlink_to(path)
    given = str(tmp_path / "link" if linked else path)
    assert main(["targets", "x86-64-onnxruntime", "--log-file", given]) == OutputError.exit_code
    assert "holds something else than messages of edgevit" in capsys.readouterr().err and path.read_bytes() == content


def test_nobody_is_waited_for_to_read_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(["targets", "x86-64-onnxruntime", "--log-file", str(pipe)]) == OutputError.exit_code
    assert "cannot be written" in capsys.readouterr().err
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main(["targets", "x86-64-onnxruntime", "--log-file", str(pipe)]) == 0
        assert b" DEBUG edgevit " in os.read(reader, 1000)
    finally:
        os.close(reader)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "--log-file", str(tmp_path / "file" / "log")]) == OutputError.exit_code
    assert "--log-file" in capsys.readouterr().err
    assert main(["--log-file", "/dev/full", "doctor"]) == OutputError.exit_code
    assert "No space left" in capsys.readouterr().err
    assert main(["-q", "-v", "doctor"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["--log-file", str(tmp_path / "a"), "doctor", "--log-file", str(tmp_path / "b")]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["verify", "/nowhere", "--json"], 19, "BundleError"),
        (["targets", "nothing", "--json"], 14, "TargetError"),
        (["biuld", "--json"], 2, "UsageError"),
        (["verify", "--json"], 2, "MissingParameter"),
        (["verify", "--json", "x", "--nothing"], 2, "NoSuchOption"),
    ],
)
def test_an_error_is_an_object_where_json_was_asked_for(
    arguments: list[str], code: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    told = json.loads(out)["error"]
    assert (told["code"], told["kind"]) == (code, kind) and err.startswith(f"edgevit: error: {told['message']}\n")
    assert main(["verify", "--", "--json"]) == 19 and capsys.readouterr().out == ""


def test_a_bug_is_an_object_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("edgevit.doctor.diagnose", lambda: {"some": 1}["none"])
    with pytest.raises(KeyError):
        main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["code"] == 1


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("edgevit.doctor.diagnose", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    for how in ((), ("--verbose",)):
        assert main(["doctor", *how]) == 130
        assert capsys.readouterr().err == "edgevit: interrupted; no partial output was left.\n"


@pytest.mark.parametrize("arguments", [[], ["device"]])
def test_a_command_without_its_part_shows_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert told.out.startswith("Usage: edgevit") and told.err == ""


def test_the_list_of_commands_says_each_in_a_whole_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) == len(COMMANDS)
    assert all(line.endswith(".") and "..." not in line for line in listed)


def test_the_version_has_a_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("edgevit, version ")


def complete(words: str) -> Sequence[str]:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_EDGEVIT_COMPLETE": "bash_complete"}
    command = [sys.executable, "-m", "edgevit"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_a_shell_completes_commands_options_and_targets() -> None:
    assert complete("edgevit bu") == ["build"]
    assert complete("edgevit build --lim") == ["--limit"]
    assert complete("edgevit build --target x86-64-avx2") == ["x86-64-avx2-onnxruntime"]
    source = {"_EDGEVIT_COMPLETE": "bash_source"}
    command = [sys.executable, "-m", "edgevit"]
    done = subprocess.run(command, env={**os.environ, **source}, capture_output=True, text=True, check=True)
    assert "complete -o nosort -F" in done.stdout


def test_a_long_line_of_a_summary_goes_on_below_and_loses_nothing() -> None:
    assert fitted("  short; line", 4) == "  short; line"
    line = "  accuracy  passed: agrees on 87.5% (52.9% to 97.8%, n = 8); " + "more-than-that, " * 40
    shown = fitted(line, 12).splitlines()
    assert len(shown) > 3 and all(len(each) <= WIDTH for each in shown)
    assert shown[0].startswith("  accuracy  passed") and all(each.startswith(" " * 12) for each in shown[1:])
    assert " ".join(" ".join(shown).split()) == " ".join(line.split())
    assert fitted("x" * 300, 4) == "x" * 300


def test_stages_move_the_whole_forward_and_never_back() -> None:
    whole = Overall("Building", {"Quantizing": 0.5, "Compiling": 0.25, "Writing": 0.25})
    LOGGER.addHandler(whole)
    try:
        with shown():
            LOGGER.addHandler(whole)
            for line, done in (("a note", 0.0), ("Quantizing", 0.0), ("Compiling for tvm", 0.5), ("Quantizing", 0.5)):
                say(line)
                assert whole.done == done
            say("Writing the bundle")
            assert whole.done == 0.75 and whole.left() == "seconds left"
    finally:
        LOGGER.removeHandler(whole)
    left_out = Overall("Building", {"compressing": 0.5, "Quantizing": 0.25, "Writing": 0.25})
    left_out.emit(LOGGER.makeRecord("edgevit", logging.INFO, "", 0, "Quantizing", (), None))
    assert left_out.done == 0.0
    left_out.emit(LOGGER.makeRecord("edgevit", logging.INFO, "", 0, "Writing", (), None))
    assert left_out.done == 0.5
    assert [clock(s) for s in (2, 41, 100, 7900)] == ["1 s", "40 s", "2 min", "2 h 12 min"]


def test_bars_are_drawn_at_a_terminal_unless_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not drawn()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert drawn()
    with progress.without_bars():
        assert not drawn() and list(track([1, 2], "Working")) == [1, 2]
    assert drawn()


def test_a_build_tells_of_its_stages_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown(), overall("Building", STAGES) as whole:
        say("Quantizing")
        assert list(track(range(4), "Rounding weights")) == [0, 1, 2, 3]
        assert whole.done == pytest.approx(STAGES["Quantizing"] / sum(STAGES.values()), abs=0.5)
        say("Compiling for tvm")
        whole.show()
        assert whole.bars is not None
        whole.bars.refresh()
    told = capsys.readouterr().err
    assert "Building: compiling, stage 2 of 9" in told and "Rounding weights" in told


def test_every_stage_is_one_that_a_build_begins() -> None:
    """A message that is worded anew here would leave the bar where it was."""
    source = "".join(
        (Path(progress.__file__).parents[1] / name).read_text(encoding="utf-8")
        for name in ("pipeline.py", "api/build.py", "build/verify_build.py", "build/points.py")
    )
    assert all(f'"{name}' in source for name in STAGES)
    begun = re.findall(r'say\(f?"((?:Quant|Lower|Compil|Measur|Writ)[^"{]+)', source)
    assert len(begun) > 4 and all(line.startswith(tuple(STAGES)) for line in begun)


def test_logging_is_left_as_it_was() -> None:
    before = LOGGER.handlers, LOGGER.level, LOGGER.propagate
    with shown() as messages:
        messages.ask(verbose=True)
        assert LOGGER.level == logging.DEBUG
    assert before == (LOGGER.handlers, LOGGER.level, LOGGER.propagate)
