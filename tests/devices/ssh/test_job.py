"""Jobs on a board behind a real sshd: what goes wrong is one clear error, and nothing stays there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgevit.devices.ssh.job import run_job
from edgevit.errors import DeviceError
from tests.devices.board import Board, free_port, gone, until, write_ssh
from tests.devices.conftest import use

ANSWER = "pathlib.Path('answer.json').write_text({!r})"
SLEEP = "time.sleep(600)"


def run(board: Board, then: str, *, timeout_s: float = 60, python: str = "python3", **changes: object) -> object:
    if "oldest" in changes:
        changes["python"] = changes.pop("oldest")
    return run_job(board.address, board.job(then, **changes), python=python, timeout_s=timeout_s)


def refusal(board: Board, then: str = SLEEP, **changes: object) -> str:
    with pytest.raises(DeviceError) as caught:
        run(board, then, **changes)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_job_answers_from_a_folder_of_its_own(board: Board) -> None:
    big = bytes(range(256)) * 20_000
    then = "data = pathlib.Path('in/big.bin').read_bytes(); " + ANSWER.format("%s").replace("'%s'", "str(sum(data))")
    files = {**board.job(then).files, "in/big.bin": big}
    assert run(board, then, files=files) == sum(big)
    folder = Path(board.log.read_text().split()[1])
    assert folder.parent == board.tmp and not folder.exists()


def test_what_a_login_prints_does_not_matter(board: Board) -> None:
    greeting = board.folder / "home" / ".bashrc"
    greeting.write_text("echo 'Welcome to EDGEVIT-RESULT {}'; echo EDGEVIT-RESULT nothing")
    try:
        assert run(board, ANSWER.format("[1]")) == [1]
    finally:
        greeting.unlink()


def test_an_unknown_or_changed_host_key_is_refused(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(board.client(tmp_path / "unknown", known=""), monkeypatch)
    assert "host key of 127.0.0.1 is unknown; log in once by hand" in refusal(board)
    assert (tmp_path / "unknown" / "known").read_text() == ""
    use(board.client(tmp_path / "changed", known=(board.folder / "user.pub").read_text()), monkeypatch)
    assert f"ssh-keygen -R '[127.0.0.1]:{board.port}'" in refusal(board)


def test_a_login_that_is_refused(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(board.client(tmp_path / "stranger", key="stranger"), monkeypatch)
    assert "127.0.0.1 refused the login; set up a key" in refusal(board)


def test_nobody_listens(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "port", free_port())
    assert "refused the connection; is sshd running there" in refusal(board)


def test_a_board_that_lacks_something_is_told_before_anything_is_copied(board: Board) -> None:
    assert "127.0.0.1 has no nopython" in refusal(board, python="nopython")
    missing = refusal(board, needs=(("numpy", "numpy"), ("no_such_runtime", "no-such-runtime==1.2")))
    assert "lacks no-such-runtime==1.2; install it there: python3 -m pip install numpy no-such-runtime==1.2" in missing
    assert f"is {os.uname().machine}, the bundle's target m68k" in refusal(board, arch="m68k")
    assert "needed: 9.9 or newer; name another one with --python" in refusal(board, oldest=(9, 9))
    assert not board.log.exists()


def test_a_board_without_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="board-") as folder:
        small = Board(Path(folder) / "small", file_limit_bytes=1 << 16)
        try:
            use(small.client(tmp_path / "client"), monkeypatch)
            assert "no space for the bundle" in refusal(small, files={"big.bin": bytes(1 << 18)})
            small.assert_clean()
        finally:
            small.stop()


def test_time_is_up(board: Board) -> None:
    assert "did not finish within 1 s; allow more with --timeout" in refusal(board, timeout_s=1)


def test_a_job_that_fails_is_told_with_its_last_words(board: Board) -> None:
    assert "could not run the bundle: ValueError: no such kernel" in refusal(
        board, "raise ValueError('no such kernel')"
    )
    assert "could not run the bundle: exit code 0" in refusal(board, ANSWER.format("{"))
    told = refusal(board, "raise ValueError('\x1b[31mred')")
    assert "red" in told and "\x1b" not in told


def test_a_connection_that_drops(board: Board) -> None:
    # The agent's parent is the process that sshd started for this login.
    stat = "int(pathlib.Path(f'/proc/{os.getppid()}/stat').read_text().rpartition(')')[2].split()[1])"
    assert "connection to 127.0.0.1 was lost" in refusal(board, f"os.kill({stat}, signal.SIGKILL); {SLEEP}")


def test_an_agent_that_is_killed_is_swept_after(board: Board) -> None:
    assert "was ended from outside" in refusal(board, f"os.kill(os.getppid(), signal.SIGKILL); {SLEEP}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whoever_asked_is_stopped(board: Board, number: signal.Signals) -> None:
    program = (
        # A test run in the background hands down that Ctrl-C is ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.devices.board import *; from edgevit.devices.ssh.job import run_job\n"
        f"class Known(Board):\n    def __init__(self): self.log, self.port = Path({str(board.log)!r}), {board.port}\n"
        f"board = Known()\nrun_job(board.address, board.job({SLEEP!r}), python='python3', timeout_s=60)"
    )
    root = Path(__file__).parents[3]
    here = board.folder / f"asked{number}"  # whoever is killed leaves its control folder
    here.mkdir()
    asking = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "TMPDIR": str(here)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: board.log.exists() and bool(board.log.read_text()), "the job does not start", patience_s=30)
    clients = [int(name) for name in processes_of(asking.pid)]
    assert len(clients) == 2  # the control connection, and the agent on it
    os.killpg(asking.pid, number)
    _, errors = asking.communicate(timeout=30)
    assert asking.returncode == -number
    assert ("KeyboardInterrupt" in errors) is (number == signal.SIGINT)
    assert bool(list(here.iterdir())) is (number == signal.SIGKILL)
    until(lambda: all(gone(client) for client in clients), "an ssh client still runs")


def processes_of(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


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
        ('case "$*" in *"exec cat") exec cat;; *) exec yes;; esac', "gave no result; its last words: "),
        ('case "$*" in *"exec cat") exec cat;; *) echo "EDGEVIT-RESULT []";; esac', "last words: EDGEVIT-RESULT []"),
        ("cat >/dev/null", "127.0.0.1 did not answer within 2 s"),
        (
            "echo 'This account is not available'; exit 1",
            "ssh cannot connect to 127.0.0.1: This account is not available",
        ),
    ],
)
def test_what_ssh_and_strange_boards_say(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    (tmp_path / "fake").mkdir()
    write_ssh(tmp_path / "fake", script)
    use(tmp_path / "fake", monkeypatch)
    if "did not answer" in said:
        monkeypatch.setattr("edgevit.devices.ssh.connection.CONNECT_TIMEOUT_S", 1)
    assert said in refusal(board)


def test_without_an_ssh_client(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ssh client on this machine" in refusal(board)


@pytest.mark.parametrize("python", ["-c", "a;b", "a b", "$(a)", "", "a\nb", "a'b", "~/x"])
def test_a_hostile_name_of_a_python_is_refused_before_connecting(board: Board, python: str) -> None:
    assert "must be a plain name or path" in refusal(board, python=python)
