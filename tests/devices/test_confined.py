"""A process that does its worst: one error each time, of one line, and nothing of it left."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevit.devices import confined
from edgevit.devices.confined import Allowance, allowance, call
from edgevit.errors import BundleError, EdgevitError, OutOfMemoryError, ParityError
from edgevit.util import limits
from tests.bundles import sample_manifest
from tests.devices.board import gone, processes_of, until
from tests.tiny import tiny_program

MODULE = "tests.misbehaving"
ALLOWED = Allowance(seconds=60, memory_bytes=512 << 20)
SUBJECT = "the model of x.zip"


def ask(folder: Path, allowed: Allowance = ALLOWED, **request: Any) -> dict[str, Any]:
    return call(MODULE, request, folder, allowed, SUBJECT)


def refused(folder: Path, allowed: Allowance = ALLOWED, **request: Any) -> str:
    before = processes_of(os.getpid())
    with pytest.raises(BundleError) as error:
        ask(folder, allowed, **request)
    message = str(error.value)
    assert message.startswith(SUBJECT) and "\n" not in message and len(message) < 2500
    assert processes_of(os.getpid()) == before
    return message


def test_an_answer_comes_back(tmp_path: Path) -> None:
    assert ask(tmp_path, do="nothing bad") == {"done": "nothing bad"}


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_crash_is_named(name: str, tmp_path: Path) -> None:
    assert f"crashed its runtime ({name}); it is damaged or means harm" in refused(tmp_path, do="signal", name=name)


def test_who_was_ended_from_outside_is_not_called_damaged(tmp_path: Path) -> None:
    message = refused(tmp_path, do="signal", name="SIGKILL")
    assert "ended from outside" in message and "damaged" not in message


@pytest.mark.parametrize("what", ["eat", "abort out of memory"])
def test_memory_ends_at_its_limit(what: str, tmp_path: Path) -> None:
    assert "needs more memory than the 512 MiB" in refused(tmp_path, do=what)


def test_a_limit_from_outside_is_no_bundles_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256 << 20, 256 << 20))
    with pytest.raises(OutOfMemoryError, match="than a limit of this process leaves it"):
        ask(tmp_path, do="eat")


def test_time_ends_and_takes_the_whole_group_along(tmp_path: Path) -> None:
    message = refused(
        tmp_path, Allowance(seconds=3, memory_bytes=ALLOWED.memory_bytes), do="sleep", pid=str(tmp_path / "pid")
    )
    assert "did not load and run within 3 s" in message and "--timeout" in message
    until(lambda: gone(int((tmp_path / "pid").read_text())), "what it started still runs")


def test_what_an_orderly_process_left_running_is_ended(tmp_path: Path) -> None:
    left = ask(tmp_path, do="leave")["pid"]
    until(lambda: gone(left), "what it started still runs")


def test_bars_are_drawn_on_the_terminal_and_cleared_when_nobody_else_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        refused(tmp_path, do="draw", code=3)
        shown = b""
        while confined.CLEARED not in shown:
            shown += os.read(master, 1000)
    os.close(master)
    assert shown.startswith(b"a bar") and shown.endswith(confined.CLEARED) and b"native" not in shown


def test_an_exit_code_comes_with_the_last_words_only(tmp_path: Path) -> None:
    message = refused(tmp_path, do="exit")
    assert "(exit code 77): last words; " in message and "xxx" not in message


def test_an_error_is_raised_as_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="^gates changed$"):
        ask(tmp_path, do="refuse")


@pytest.mark.parametrize("code", ["[]", '"31"', "null", "31.5", "1", "true"])
def test_an_error_of_no_known_kind_is_a_bundles(code: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="^odd$"):
        ask(tmp_path, raw=f'{{"error": "odd", "code": {code}}}')


@pytest.mark.parametrize("raw", ["nothing", "[]", "{", '{"a": NaN}', "[" * 100_000])
def test_an_answer_that_cannot_be_read_is_an_error(raw: str, tmp_path: Path) -> None:
    assert "no answer that can be read" in refused(tmp_path, raw=raw)


def test_the_kernel_holds_it(tmp_path: Path) -> None:
    found = ask(tmp_path, do="limits")
    assert found["RLIMIT_CPU"] == -1, "with a limit the kernel counts processor time in ticks"
    assert found["RLIMIT_CORE"] == 0
    assert found["RLIMIT_FSIZE"] == limits.RUN_FILE_BYTES.value
    assert 512 << 20 < found["RLIMIT_DATA"] < 4 << 30


def test_another_program_is_held_from_its_first_instruction() -> None:
    code = "import resource; print(*resource.getrlimit(resource.RLIMIT_DATA))"
    for most, outer in ((512 << 20, ""), (1 << 40, "ulimit -d 600000 && ")):  # a lower one from outside stays
        held = confined.held_command([sys.executable, "-c", code], most)
        command = ["sh", "-c", outer + 'exec "$@"', "sh", *held]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(600_000 << 10 if outer else most)] * 2


def test_a_lower_limit_stays(tmp_path: Path) -> None:
    code = (
        "import resource; from edgevit.devices import confined\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))\n"
        "confined.hold({'seconds': 9, 'memory_bytes': 1 << 40})\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1 << 30


def test_it_ends_when_nobody_waits_any_more(tmp_path: Path) -> None:
    """The waiting process is killed, so that it cannot end what it started."""
    code = (
        "import sys; from pathlib import Path; from edgevit.devices.confined import Allowance, call\n"
        "allowed = Allowance(seconds=600, memory_bytes=1 << 29)\n"
        "call('tests.misbehaving', {'do': 'sleep', 'pid': sys.argv[1] + '/pid'}, Path(sys.argv[1]), allowed, 'x')"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and pid.read_text() != "", "the process does not start", patience_s=60)
    worker = int(Path(f"/proc/{pid.read_text()}/stat").read_text().rpartition(")")[2].split()[1])
    try:
        waiting.kill()
        waiting.wait()
        until(lambda: gone(worker), "the process still runs")
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(("free", "given"), [(0, 64), (1, 2), (3, 3), (100, 64)])
def test_no_more_memory_than_is_free_but_the_least_in_any_case(
    free: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In GiB; 0: the system does not tell."""
    found: dict[int, int] = {}
    monkeypatch.setattr(confined, "limit", lambda kind, most: found.update({kind: most}))
    monkeypatch.setattr(confined, "proc_bytes", lambda file, _: free << 30 if file == "meminfo" else 5)
    monkeypatch.setattr(confined, "_end_with_parent", lambda: None)
    confined.hold({"seconds": 1, "memory_bytes": 64 << 30})
    assert found[resource.RLIMIT_DATA] == (given << 30) + 5


def test_what_a_bundle_may_take_grows_with_its_files_bound_and_threads() -> None:
    manifest = sample_manifest(tiny_program(gated=True))
    one, two = (allowance(manifest, seconds=1, threads=threads).memory_bytes for threads in (500, 501))
    assert two - one == limits.RUN_THREAD_BYTES.value
    least = limits.RUN_BYTES.value + 500 * limits.RUN_THREAD_BYTES.value
    assert one == least + 2 * manifest.bound.bound_bytes  # files are listed when the bundle is written
    boasting = dataclasses.replace(manifest, bound=dataclasses.replace(manifest.bound, bound_bytes=1 << 60))
    assert allowance(boasting, seconds=1, threads=500).memory_bytes == least + 2 * limits.RUN_BOUND_BYTES.value


def test_every_error_that_a_command_ends_with_can_be_told() -> None:
    kinds = [EdgevitError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__ == "edgevit.errors":
            assert confined.ERRORS[kind.exit_code] is kind
