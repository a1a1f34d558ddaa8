"""Run a job on a board and bring back its one result; whatever happens, nothing of it stays there."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgevit.devices.ssh import agent
from edgevit.devices.ssh.connection import (
    Address,
    Connection,
    connect,
    end,
    explain,
    printable,
)
from edgevit.devices.ssh.lines import Lines
from edgevit.errors import DeviceError
from edgevit.util.progress import track

MARK = re.compile(rb"EDGEVIT-(READY|WORKER|RESULT) (\{.*\})")
START_S = 120  # for Python to start there and say that it is ready
CLEANING_S = 30
FOLDER = re.compile(r"/(?:[A-Za-z0-9._-]+/)*edgevit-[A-Za-z0-9_]{8}")
PYTHON = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*")
CHUNK_BYTES = 1 << 20

Content = bytes | Path


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a board has to do.

    Attributes:
        arch: machine name as `platform.machine()` gives it; another board is refused.
        needs: (module, pip requirement) that its Python must have.
        files: path in the job's folder -> what lies there.
        command: arguments of its Python, run in that folder.
        answer: the JSON file that the command leaves in that folder.
        python: oldest Python that runs the files.
    """

    arch: str
    needs: tuple[tuple[str, str], ...]
    files: Mapping[str, Content]
    command: tuple[str, ...]
    answer: str = "answer.json"
    python: tuple[int, int] = (3, 11)


def run_job(address: Address, job: Job, *, python: str, timeout_s: float) -> Any:
    """Copy a job to a board, run it, and return the JSON value it answers with.

    Args:
        address: the board.
        job: what to do there.
        python: the board's Python, a name on its PATH or a path (relative to the home folder).
        timeout_s: how long the job may run once it is copied.

    Raises:
        DeviceError: not reached, not fit for the job, out of time or space, or no answer that makes sense.
    """
    if not PYTHON.fullmatch(python):
        raise DeviceError(
            f"the board's Python must be a plain name or path, got {python!r}; for example: --python venv/bin/python"
        )
    with connect(address) as connection, tempfile.TemporaryFile() as errors:
        process = connection.start(command_line(python), errors)
        # The board keeps the time itself; this is for one that no longer does.
        alarm = threading.Timer(START_S + timeout_s + CLEANING_S, process.kill)
        alarm.daemon = True
        alarm.start()
        session = _Session(process)
        try:
            result = _talk(session, job, timeout_s)
        finally:
            _settle(session, connection)
            alarm.cancel()
        if result is None:
            raise _silence(session, connection, errors, python, address)
    if "answer" not in result:
        raise _refusal(result, job, python, address)
    return result["answer"]


def command_line(python: str) -> str:
    """The one command the board's shell sees: the agent as base64, which no shell can misread."""
    source = base64.b64encode(Path(agent.__file__).read_bytes()).decode()
    program = f"import base64;exec(base64.b64decode('{source}'))"
    return f'exec {shlex.quote(python)} -c "{program}"'


class _Session(Lines):
    """The agent's lines, and what they told so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(process, START_S)
        self.folder: str | None = None
        self.group: int | None = None
        self.result: dict[str, Any] | None = None

    def until(self, word: str) -> bool:
        """Read lines up to the one with `word`, or the result; False if there is neither."""
        for kind, value in self._told():
            if kind == "READY" and FOLDER.fullmatch(str(value.get("folder"))):
                self.folder = value["folder"]
            elif kind == "WORKER" and isinstance(value.get("group"), int) and value["group"] > 1:
                self.group = value["group"]
            elif kind == "RESULT":
                self.result = value
            if kind in (word, "RESULT"):
                return True
        return False

    def _told(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the agent says; other lines (a greeting, a shell's remarks) are kept for the error message only."""
        while (line := self.next()) is not None:
            found = MARK.fullmatch(line.strip())
            try:
                value = json.loads(found[2]) if found else None
            except (ValueError, RecursionError):
                value = None
            if found and isinstance(value, dict):
                yield found[1].decode(), value
                continue
            self.waste(line)


def _talk(session: _Session, job: Job, timeout_s: float) -> dict[str, Any] | None:
    """Send the job, then the files once the board is ready for them, and wait; None if no result comes."""
    stdin = session.process.stdin
    assert stdin
    header = {
        "python": job.python,
        "arch": job.arch,
        "needs": job.needs,
        "files": [(name, _size(content)) for name, content in job.files.items()],
        "command": job.command,
        "answer": job.answer,
        "timeout_s": timeout_s,
    }
    try:
        stdin.write(json.dumps(header).encode() + b"\n")
        stdin.flush()
        if session.until("READY") and session.result is None:
            for part in track(_parts(job.files), f"Copying {len(job.files)} files to the board"):
                stdin.write(part)
            stdin.flush()
    except BrokenPipeError:
        pass  # it refused before it had read everything, and says why
    session.deadline = time.monotonic() + timeout_s + CLEANING_S
    session.until("RESULT")
    return session.result


def _settle(session: _Session, connection: Connection) -> None:
    """Let the agent clean up; if it did not say that it has, sweep after it."""
    try:
        if session.process.stdin:
            session.process.stdin.close()  # the end of its lifeline
    except BrokenPipeError:
        pass
    if session.result is None:
        session.deadline = time.monotonic() + CLEANING_S / 3
        session.until("RESULT")
    end(session.process)
    left = session.result.get("left") if session.result else session.folder
    if left == session.folder and session.folder is not None and not connection.closed():
        stop = f"kill -9 -- -{session.group}; " if session.group and session.result is None else ""
        with tempfile.TemporaryFile() as errors:
            end(connection.start(f"{stop}rm -rf -- {session.folder}", errors), CLEANING_S / 3)


def _refusal(result: dict[str, Any], job: Job, python: str, address: Address) -> DeviceError:
    """The error for what the agent refused."""
    kind, words = result.get("refused"), printable(str(result.get("words", "")))
    needed = ".".join(map(str, job.python))
    packages = " ".join(shlex.quote(package) for _, package in job.needs)
    messages = {
        "python": f"{python} on {address} is Python {words}, needed: {needed} or newer; name another one with --python",
        "arch": f"{address} is {words}, the bundle's target {job.arch}; build the bundle for a target of that machine",
        "missing": f"{python} on {address} lacks {words}; install it there: {python} -m pip install {packages}. Where "
        "the system's Python may not be changed, make a virtual environment and name its Python with --python",
        "space": f"{address} has no space for the bundle: {words}; free some, or let TMPDIR there name a larger disk",
        "timeout": f"{address} did not finish within {words}; allow more with --timeout, or ask for fewer --runs",
        "lost": f"the connection to {address} was lost while it measured; its copy of the bundle was removed",
    }
    return DeviceError(messages.get(str(kind), f"{address} could not run the bundle: {words}"))


def _silence(
    session: _Session, connection: Connection, errors: IO[bytes], python: str, address: Address
) -> DeviceError:
    """The error for a board that gave no result."""
    errors.seek(0)
    said = errors.read(1 << 16).decode(errors="replace")
    if connection.closed() and session.process.returncode != 127:
        return DeviceError(
            f"the connection to {address} was lost; what runs there notices it, stops and removes its files. Try again"
        )
    if session.process.returncode == 127 or "not found" in said or "No such file" in said:
        return DeviceError(
            f"{address} has no {python} ({printable(said)}); install it there (sudo apt-get install python3 "
            "python3-venv), or name another one with --python"
        )
    if session.folder is not None:
        return DeviceError(f"what measured on {address} was ended from outside, for want of memory perhaps; try again")
    if session.process.returncode == 255 and not session.garbage:
        return explain(said, address)
    heard = printable(session.garbage.decode(errors="replace"))
    if heard == "it said nothing":
        heard = printable(said)
    return DeviceError(f"{address} gave no result; its last words: {heard}")


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _parts(files: Mapping[str, Content]) -> Iterator[bytes]:
    for content in files.values():
        if isinstance(content, bytes):
            yield content
            continue
        with content.open("rb") as file:
            while part := file.read(CHUNK_BYTES):
                yield part
