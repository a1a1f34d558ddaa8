"""A session on a board behind a real sshd: what goes wrong is one clear error, nothing stays there."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgevit.devices.machine import BoardAnswers, Content, Step, StepResult
from edgevit.devices.ssh import session
from edgevit.devices.ssh.session import connected
from edgevit.errors import DeviceError
from tests.devices.board import Board, free_port, gone, processes_of, until, write_ssh
from tests.devices.conftest import use

SLEEP = "exec sleep 600"
# The process that sshd started for this login is the parent of the agent.
SSHD = 'sshd=$(sed "s/.*) . //; s/ .*//" /proc/$PPID/stat)'


def run_steps(
    board: Board, files: Mapping[str, Content], *steps: Step, timeout_s: float = 60, python: str = "python3"
) -> dict[str, StepResult]:
    with connected(board.address, python=python) as opened:
        return opened.run(files, steps, timeout_s=timeout_s)


def run(board: Board, script: str, *, timeout_s: float = 60, **files: bytes) -> StepResult:
    """Run a program that says where it runs and then does `script`."""
    program = f"#!/bin/sh\necho $$ $PWD > {board.log}\n{script}\n"
    step = Step(name="work", program="bin/work", arguments=("two words",))
    return run_steps(board, {"bin/work": program.encode(), **files}, step, timeout_s=timeout_s)["work"]


def describe(board: Board) -> BoardAnswers:
    with connected(board.address) as opened:
        return opened.describe()


def refusal(board: Board, script: str = SLEEP, **changes: float) -> str:
    with pytest.raises(DeviceError) as caught:
        run(board, script, **changes)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_program_answers_from_a_folder_of_its_own(board: Board) -> None:
    big = bytes(range(256)) * 20_000
    result = run(board, 'wc -c <big; echo "$1" >&2; touch -- "-rf *"; exit 3', big=big)
    assert result.out.split() == [str(len(big))]
    assert result.err.strip() == "two words" and result.status == 3
    folder = Path(board.log.read_text().split()[1])
    assert folder.parent == board.tmp and not folder.exists()


def test_a_board_tells_what_it_is_before_anything_is_copied(board: Board) -> None:
    told = describe(board)
    assert told["machine"].strip() == os.uname().machine
    assert told["/proc/cpuinfo"].count("processor") >= 1 and "Cpus_allowed_list" in told["/proc/self/status"]
    assert told["/proc/loadavg"].split() and told["libc"].strip()
    assert int(told["space"].splitlines()[1].split()[3]) > 0


def test_a_session_runs_steps_one_after_the_other_and_more_than_once(board: Board) -> None:
    early, fails, late = (Step(name=name, program=f"bin/{name}", timed=True) for name in ("early", "fails", "late"))
    script = b"#!/bin/sh\nread word <&0; echo $0 $word\n"
    with connected(board.address) as opened:
        files = {"bin/early": script, "bin/late": script, "bin/fails": b"#!/bin/sh\nexit 7\n"}
        first = opened.run(files, [early, late], timeout_s=60)
        assert {name: result.out.strip() for name, result in first.items()} == {
            "early": "bin/early",
            "late": "bin/late",
        }
        for result in first.values():
            assert result.before["/proc/loadavg"].split() and result.after["/proc/loadavg"].split()
        second = opened.run({}, [early, fails, late], timeout_s=60)
        assert second.keys() == {"early", "fails"} and second["fails"].status == 7
        assert opened.run({}, [late], timeout_s=60).keys() == {"late"}


def test_a_program_holds_no_more_memory_than_its_step_says(board: Board) -> None:
    script = b"#!/bin/sh\nulimit -d\nulimit -H -d\nexit 3\n"
    step = Step(name="held", program="bin/held", memory_bytes=300 << 20)
    result = run_steps(board, {"bin/held": script}, step)["held"]
    assert result.out.split() == [str(300 << 10)] * 2 and result.status == 3


def test_a_python_step_finds_modules_in_the_folder_and_leaves_nothing(board: Board) -> None:
    module = b"import os, sys, tempfile\nprint(os.getcwd() == tempfile.gettempdir(), sys.argv[1:])\n"
    step = Step(name="python", program=None, arguments=("-m", "room.there", "it's", "$(a) b"))
    relative = os.path.relpath(sys.executable, pwd.getpwuid(os.getuid()).pw_dir)  # of the folder a login begins in
    for python in ("python3", sys.executable, relative):
        result = run_steps(board, {"room/there.py": module}, step, python=python)["python"]
        assert result.out.strip() == """True ["it's", '$(a) b']""", result.err
    assert run_steps(board, {}, step, python="nopython")["python"].status == 127


def test_what_a_login_prints_does_not_matter(board: Board) -> None:
    greeting = board.folder / "home" / ".bashrc"
    greeting.write_text("echo 'Welcome to EDGEVIT-DONE'; echo EDGEVIT-NOTHING")
    try:
        assert run(board, "echo 1").out.strip() == "1"
    finally:
        greeting.unlink()


def test_time_is_up(board: Board) -> None:
    assert "did not finish within 0.5 s; allow more with --timeout" in refusal(board, timeout_s=0.5)


def test_a_connection_that_drops(board: Board) -> None:
    assert "connection to 127.0.0.1 was lost" in refusal(board, f"{SSHD}; kill -9 $sshd; {SLEEP}")


def test_what_a_program_started_ends_with_it(board: Board) -> None:
    """Where it leads a process group of its own, as the Python program does."""
    child = board.folder / "child"
    module = (
        "import os, subprocess, pathlib, time\nos.setpgid(0, 0)\n"
        f"started = subprocess.Popen(['sleep', '600'])\npathlib.Path({str(child)!r}).write_text(str(started.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(DeviceError, match="did not finish within 5 s"):
        step = Step(name="python", program=None, arguments=("-m", "there"))
        run_steps(board, {"there.py": module.encode()}, step, timeout_s=5)
    until(lambda: gone(int(child.read_text())), "what the program started still runs")
    child.unlink()


def test_an_agent_that_is_killed_is_swept_after(board: Board) -> None:
    assert "was ended from outside" in refusal(board, f"kill -9 $PPID; {SLEEP}")


def test_an_unknown_or_changed_host_key_is_refused(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(board.client(tmp_path / "unknown", known=""), monkeypatch)
    assert "host key of 127.0.0.1 is unknown; log in once by hand" in refusal(board)
    assert (tmp_path / "unknown" / "known").read_text() == ""
    use(board.client(tmp_path / "changed", known=(board.folder / "user.pub").read_text()), monkeypatch)
    assert f"ssh-keygen -R '[127.0.0.1]:{board.port}'" in refusal(board)


def test_a_login_that_is_refused_and_nobody_who_listens(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(board.client(tmp_path / "stranger", key="stranger"), monkeypatch)
    assert "127.0.0.1 refused the login; set up a key" in refusal(board)
    monkeypatch.setattr(board, "port", free_port())
    assert "refused the connection; is sshd running there" in refusal(board)


def test_a_board_without_space_is_told_before_it_is_full(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RESERVE_BYTES", 1 << 60)
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
        "from tests.devices.ssh.test_session import *; from edgevit.cli import _cleaning_up\n"
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
        ("echo 'ssh: Could not resolve hostname board: Name not known' >&2; exit 255", "no address is known for"),
        ("echo 'ssh: connect to host board port 22: Connection timed out' >&2; exit 255", "does not answer; is it on"),
        ("echo 'ssh: connect to host board port 22: No route to host' >&2; exit 255", "there is no way to"),
        (
            "printf 'bad \\033[2Jthing\\n' >&2; exit 255",
            "ssh cannot connect to 127.0.0.1: bad [2Jthing; does this work",
        ),
        ("exec /bin/false", "it said nothing"),
        ("cat >/dev/null", "127.0.0.1 did not answer within 2 s"),
        (
            "echo 'This account is not available'; exit 1",
            "ssh cannot connect to 127.0.0.1: This account is not available",
        ),
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
    monkeypatch.setattr(session, "CLEANING_S", 3)
    if "did not answer" in said:
        monkeypatch.setattr("edgevit.devices.ssh.connection.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(DeviceError) as caught:
        run(board, SLEEP, timeout_s=1 if "within 1 s" in said else 60, big=bytes(1 << 20))
    assert said in str(caught.value)


def test_without_an_ssh_client(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ssh client on this machine" in refusal(board)
