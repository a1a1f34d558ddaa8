"""Run a command of `edgevit` in a forked process with something going wrong in it, and tell what it came to."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgevit.cli import main
from edgevit.util import renames

PATIENCE_S = 600
BEGUN = b"!"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of what was killed become children of this process
# Imported before anything is forked, so that a run takes a second; the rest of the package imports them on demand.
HEAVY = (
    "onnx",
    "onnxruntime",
    "safetensors.numpy",
    "PIL.Image",
    "rich.console",
    "edgevit.api.build",
    "edgevit.build.verify_build",
)
TRAINING = ("torch.utils.tensorboard", "edgevit.api.training", "edgevit.compress.usdc.run")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that ended it), and what it said."""

    code: int
    out: str
    said: str

    @property
    def crashed(self) -> str:
        """Why this is no way to end, or ''."""
        if "Traceback" in self.said or self.code == 1:
            return f"exit code {self.code}: {(self.said.strip().splitlines() or [''])[-1]}"
        return ""


def prepare() -> None:
    """Import what commands need, and take in orphans; once, in a process that runs nothing itself."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    for name in (*HEAVY, *(TRAINING if find_spec("torch") else ())):
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def forked(
    arguments: Sequence[str],
    folder: Path,
    *,
    enter: Callable[[], None] = lambda: None,
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    after_s: float | None = None,
    number: int = signal.SIGKILL,
    afterwards: Callable[[], None] = lambda: None,
) -> Ended:
    """Run `edgevit ARGUMENTS` in a forked process and wait until it, and all that it started, has ended.

    Args:
        arguments: of the command line.
        folder: its temporary files go to `tmp` there.
        enter: called in that process before anything else.
        within: a context, entered in that process, in which the command runs: what goes wrong.
        after_s: after so many seconds `number` is sent to it: SIGINT to all processes of the command, as a terminal
            sends it, other signals to the first alone.
        number: the signal.
        afterwards: called in that process when the command is done; what it raises is a fault of the command.
    """
    reading, writing = os.pipe()
    streams = [os.pipe(), os.pipe()]  # a file of it would meet the limits on files too
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            _redirect([end for _, end in streams])
            tempfile.tempdir = str(folder / "tmp")
            os.environ["TMPDIR"] = str(folder / "tmp")
            enter()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os._exit(_work(arguments, within, afterwards, writing))
        finally:
            os._exit(1)
    os.close(writing)
    for _, end in streams:
        os.close(end)
    with ThreadPoolExecutor(len(streams)) as pool:
        told = [pool.submit(_all_of, begin) for begin, _ in streams]
        code = _attended(child, reading, after_s, number)
    out, said = (each.result().decode(errors="replace") for each in told)
    return Ended(code=code, out=out, said=said)


def _attended(child: int, reading: int, after_s: float | None, number: int) -> int:
    """The exit code of a child, which gets a signal some time after it has begun."""
    os.read(reading, 1)
    os.close(reading)
    if after_s is not None:
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, number) if number == signal.SIGINT else os.kill(child, number)
    return _wait(child)


def _all_of(stream: int) -> bytes:
    with os.fdopen(stream, "rb") as file:
        return file.read()


def _redirect(streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115, PTH123


def _work(
    arguments: Sequence[str],
    within: Callable[[], contextlib.AbstractContextManager[object]],
    afterwards: Callable[[], None],
    writing: int,
) -> int:
    """The command's exit code, as Python would end with it."""
    try:
        with within():
            os.write(writing, BEGUN)
            code = main(list(arguments))
        afterwards()
        sys.stdout.flush()
        return code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:  # before the command began, or after it ended
        return 130
    except BaseException:
        traceback.print_exc()
        return 1


def _wait(child: int) -> int:
    """The exit code of a child; then wait for the orphans that it left."""
    end, code = time.monotonic() + PATIENCE_S, None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
        elif not pid:
            if time.monotonic() > end:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                raise AssertionError(f"not ended after {PATIENCE_S} s")
            time.sleep(0.005)
    assert code is not None
    return code


@contextlib.contextmanager
def ended_at_rename(moment: int, number: int, count: Path) -> Iterator[None]:
    """Send a signal to this process before its rename `moment`, counting each exchange also when it is done.

    How many there were is written to `count`.
    """
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1
        if seen == moment + 1:
            os.kill(os.getpid(), number)

    def hear(event: str, _: tuple[object, ...]) -> None:
        if event == "os.rename":
            step()

    real = renames.rename

    def rename(source: Path, target: Path, flags: int) -> bool:
        step()
        done = real(source, target, flags)
        step()
        return done

    renames.rename = rename
    sys.addaudithook(hear)
    yield
    count.write_text(json.dumps(seen))
