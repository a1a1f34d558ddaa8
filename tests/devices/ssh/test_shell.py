"""Programs on a board that has a shell only, behind a real sshd: what goes wrong is one clear error, nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.devices.ssh import shell
from edgevit.devices.ssh.shell import Told, Work, run_shell
from edgevit.errors import DeviceError
from tests.devices.board import Board, free_port, gone, until, write_ssh
from tests.devices.conftest import use
from tests.devices.ssh.test_job import processes_of

SLEEP = "exec sleep 600"
CALLS = "run work bin/work 'two words'"
# The process that sshd started for this login is the parent of the agent.
SSHD = 'sshd=$(sed "s/.*) . //; s/ .*//" /proc/$PPID/stat)'


def work(board: Board, script: str, **files: bytes) -> Callable[[Told], Work]:
    """A program that says where it runs and then does `script`."""
    program = f"#!/bin/sh\necho $$ $PWD > {board.log}\n{script}\n"
    return lambda told: Work(files={"bin/work": program.encode(), **files}, calls=CALLS)


def run(board: Board, script: str, *, timeout_s: float = 60, **files: bytes) -> Told:
    return run_shell(board.address, work(board, script, **files), timeout_s=timeout_s)


def refusal(board: Board, script: str = SLEEP, **changes: float) -> str:
    with pytest.raises(DeviceError) as caught:
        run(board, script, **changes)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_program_answers_from_a_folder_of_its_own(board: Board) -> None:
    big = bytes(range(256)) * 20_000
    told = run(board, 'wc -c <big; echo "$1" >&2; touch -- "-rf *"; exit 3', big=big)
    assert told["./work.out"].split() == [str(len(big))]
    assert told["./work.err"].strip() == "two words" and told["./work.status"].strip() == "3"
    folder = Path(board.log.read_text().split()[1])
    assert folder.parent == board.tmp and not folder.exists()


def test_a_board_tells_what_it_is_before_anything_is_copied(board: Board) -> None:
    told: dict[str, str] = {}

    def refuse(machine: Told) -> Work:
        told.update(machine)
        raise DeviceError("not this one")

    with pytest.raises(DeviceError, match="not this one"):
        run_shell(board.address, refuse, timeout_s=60)
    assert told["machine"].strip() == os.uname().machine
    assert told["/proc/cpuinfo"].count("processor") >= 1 and "Cpus_allowed_list" in told["/proc/self/status"]
    assert told["/proc/loadavg"].split() and told["libc"].strip()
    assert int(told["space"].splitlines()[1].split()[3]) > 0


def test_moments_are_told_apart(board: Board) -> None:
    def prepare(told: Told) -> Work:
        program = b"#!/bin/sh\n:\n"
        return Work(files={"bin/work": program}, calls="moment early: >a.told; run work bin/work; moment late: >b.told")

    told = run_shell(board.address, prepare, timeout_s=60)
    assert told["early:/proc/loadavg"].split() and told["late:/proc/loadavg"].split()


def test_what_a_login_prints_does_not_matter(board: Board) -> None:
    greeting = board.folder / "home" / ".bashrc"
    greeting.write_text("echo 'Welcome to EDGEVIT-DONE'; echo EDGEVIT-NOTHING")
    try:
        assert run(board, "echo 1")["./work.out"].strip() == "1"
    finally:
        greeting.unlink()


def test_time_is_up(board: Board) -> None:
    assert "did not finish within 0.5 s; allow more with --timeout" in refusal(board, timeout_s=0.5)


def test_a_connection_that_drops(board: Board) -> None:
    assert "connection to 127.0.0.1 was lost" in refusal(board, f"{SSHD}; kill -9 $sshd; {SLEEP}")


def test_an_agent_that_is_killed_is_swept_after(board: Board) -> None:
    assert "was ended from outside" in refusal(board, f"kill -9 $PPID; {SLEEP}")


def test_a_login_that_is_refused_and_nobody_who_listens(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(board.client(tmp_path / "stranger", key="stranger"), monkeypatch)
    assert "127.0.0.1 refused the login; set up a key" in refusal(board)
    monkeypatch.setattr(board, "port", free_port())
    assert "refused the connection; is sshd running there" in refusal(board)


def test_a_board_without_space_is_told_before_it_is_full(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "RESERVE_BYTES", 1 << 60)
    assert "127.0.0.1 has no space for the bundle: " in refusal(board)
    assert not board.log.exists()


def test_a_board_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="board-") as folder:
        small = Board(Path(folder) / "small", file_limit_bytes=1 << 16)
        try:
            use(small.client(tmp_path / "client"), monkeypatch)
            with pytest.raises(DeviceError, match="no space for the bundle: tar: big: "):
                run(small, SLEEP, big=bytes(1 << 20))
            small.assert_clean()
        finally:
            small.stop()


def test_a_folder_that_nobody_may_write_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="board-") as folder:
        broken = Board(Path(folder) / "broken")
        broken.tmp.rmdir()
        try:
            use(broken.client(tmp_path / "client"), monkeypatch)
            assert f"lets nobody write into {broken.tmp}; let TMPDIR there name another folder" in refusal(broken)
        finally:
            broken.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_asked_is_stopped(board: Board, number: signal.Signals) -> None:
    program = (
        # A test run in the background hands down that Ctrl-C is ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.devices.ssh.test_shell import *; from edgevit.cli import _cleaning_up\n"
        f"class Known(Board):\n    def __init__(self): self.log, self.port = Path({str(board.log)!r}), {board.port}\n"
        f"with _cleaning_up(): run(Known(), {SLEEP!r})"
    )
    here = board.folder / f"asked-shell{number}"  # whoever is killed leaves its control folder
    here.mkdir()
    asking = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TMPDIR": str(here)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    until(lambda: board.log.exists() and bool(board.log.read_text()), "the program does not start", patience_s=30)
    clients = [int(name) for name in processes_of(asking.pid)]
    assert len(clients) == 2  # the control connection, and the agent on it
    os.killpg(asking.pid, number)
    asking.communicate(timeout=30)
    assert asking.returncode == (143 if number == signal.SIGTERM else -number)
    assert bool(list(here.iterdir())) is (number == signal.SIGKILL)
    until(lambda: all(gone(client) for client in clients), "an ssh client still runs")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('case "$*" in *"exec cat") exec cat;; *) exec yes;; esac', "has no shell that works (sh); its last words: y"),
        ('case "$*" in *"exec cat") exec cat;; *) echo EDGEVIT-READY /etc;; esac', "has no shell that works (sh)"),
        ('case "$*" in *"exec cat") exec cat;; *) echo EDGEVIT-DONE;; esac', "has no shell that works (sh)"),
        (
            'case "$*" in *"exec cat") exec cat;; *tar*) echo tar: not found >&2; exit 127;; '
            "*) echo EDGEVIT-READY /tmp/edgevit-01234567; cat >/dev/null;; esac",
            "127.0.0.1 has no tar (tar: not found); install it there",
        ),
        (
            'case "$*" in *"exec cat") exec cat;; *tar*) echo tar: Cannot write: No space left on device >&2; exit 2;; '
            "*) echo EDGEVIT-READY /tmp/edgevit-01234567; cat >/dev/null;; esac",
            "127.0.0.1 has no space for the bundle: tar: Cannot write: No space left on device",
        ),
        (
            'case "$*" in *"exec cat") exec cat;; *tar*) exec sleep 60;; '
            "*) echo EDGEVIT-READY /tmp/edgevit-01234567; cat >/dev/null;; esac",
            "127.0.0.1 did not take the bundle within 1 s; allow more with --timeout",
        ),
    ],
)
def test_what_strange_boards_say(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    (tmp_path / "fake").mkdir()
    write_ssh(tmp_path / "fake", script)
    use(tmp_path / "fake", monkeypatch)
    monkeypatch.setattr(shell, "CLEANING_S", 3)
    with pytest.raises(DeviceError) as caught:
        run(board, SLEEP, timeout_s=1 if "within" in said else 60, big=bytes(1 << 20))
    assert said in str(caught.value)
