"""Run programs on a board that has a shell and nothing else: what they leave comes back, and nothing stays there."""

from __future__ import annotations

import io
import re
import secrets
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgevit.devices.ssh.connection import (
    Address,
    Connection,
    connect,
    end,
    explain,
    printable,
)
from edgevit.devices.ssh.job import CLEANING_S, FOLDER, START_S, Content
from edgevit.devices.ssh.lines import Lines
from edgevit.errors import DeviceError
from edgevit.util.progress import track

AGENT = Path(__file__).with_name("agent.sh")
MARK = re.compile(rb"EDGEVIT-(FILE|READY|DONE)(?: (.*))?")
TOLD_LIMIT_BYTES = 256 << 20
RESERVE_BYTES = 16 << 20  # for what a run itself writes
# One line that every login shell hands on as it is; it reads the agent itself from stdin.
BOOT = (
    'n=$(printf "\\nx"); n=${n%x}; p=; while IFS= read -r l; '
    'do case $l in EDGEVIT-END) eval "$p"; exit;; esac; p=$p$l$n; done'
)
FULL = re.compile(r"no space|file too large|disk quota|wrote only", re.IGNORECASE)

Told = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to do on a board: `files` by path in the job's folder, and `calls`, a line of shell, run there.

    `calls` holds only what the caller wrote or quoted itself. `run STEP PROGRAM ...` of `agent.sh` leaves STEP.status,
    STEP.out and STEP.err to be told, and of `moment NAME >FILE.told` names begin with NAME. Programs lie in PROGRAMS.
    """

    files: Mapping[str, Content]
    calls: str


PROGRAMS = "bin"  # the folder of those files that are to be executable


def run_shell(address: Address, prepare: Callable[[Told], Work], *, timeout_s: float) -> Told:
    """Let a board run what `prepare` makes of what it tells of itself, and return all that it tells then.

    Args:
        address: the board.
        prepare: gets files and answers of the board by name (those of `machine` and `moment` in `agent.sh`); may refuse
            the board by raising DeviceError, before anything is copied.
        timeout_s: how long the calls may run.

    Raises:
        DeviceError: not reached, refused, without space, out of time, or ended from outside.
    """
    with connect(address) as connection, tempfile.TemporaryFile() as errors:
        process = connection.start(f"exec sh -c '{BOOT}'", errors)
        session = _Session(process)
        try:
            told = _talk(session, connection, prepare, timeout_s)
        finally:
            _settle(session, connection)
        if told is None:
            raise _silence(session, connection, errors, address, timeout_s)
    return told


class _Session(Lines):
    """The agent's lines; `folder` is known once it is ready, `stage` is what is being waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(process, START_S)
        self.folder: str | None = None
        self.stage = "start"
        self.done = False

    def say(self, text: str) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is read below

    def told(self) -> Told | None:
        """Everything up to the next READY or DONE; None if neither comes."""
        found: dict[str, list[bytes]] = {}
        current: list[bytes] | None = None
        size = 0
        while (line := self.next()) is not None and size < TOLD_LIMIT_BYTES:
            mark = MARK.fullmatch(line.rstrip(b"\r"))
            size += len(line)
            if mark is None:
                self.waste(line) if current is None else current.append(line)
            elif mark[1] == b"FILE":
                current = found.setdefault((mark[2] or b"").decode(errors="replace"), [])
            else:
                self._note(mark[1], (mark[2] or b"").decode(errors="replace"))
                return {name: b"\n".join(lines).decode(errors="replace") for name, lines in found.items()}
        self.garbage = b"\n".join((found.get("unwritable") or [self.garbage])[:1])
        return None

    def _note(self, word: bytes, folder: str) -> None:
        if word == b"READY" and FOLDER.fullmatch(folder):
            self.folder = folder
        self.done = word == b"DONE" and not folder


def _talk(session: _Session, connection: Connection, prepare: Callable[[Told], Work], timeout_s: float) -> Told | None:
    """Send the agent, hear what the board is, send what fits it, and wait; None if no answer comes."""
    name = f"edgevit-{secrets.token_hex(4)}"
    session.say(f'name={name}\n{AGENT.read_text(encoding="utf-8")}\nreceive\neval "$word"\nfinish\nEDGEVIT-END\n')
    told = session.told()
    if told is None or session.folder is None:
        return None
    work = prepare(told)
    _require_space(told, work.files, connection.address)
    session.stage = "copy"
    _copy(session, connection, work.files, timeout_s)
    session.stage = "run"
    session.deadline = time.monotonic() + timeout_s
    session.say(work.calls + "\n")
    return session.told()


def _require_space(told: Told, files: Mapping[str, Content], address: Address) -> None:
    rows = [line.split() for line in told.get("space", "").splitlines()[1:]]
    free = next((int(row[3]) * 1024 for row in rows if len(row) > 5 and row[3].isdigit()), None)
    needed = sum(content.stat().st_size if isinstance(content, Path) else len(content) for content in files.values())
    if free is not None and free < needed + RESERVE_BYTES:
        raise _no_space(address, f"{free} bytes are free, needed: {needed + RESERVE_BYTES}")


def _no_space(address: Address, words: str) -> DeviceError:
    return DeviceError(
        f"{address} has no space for the bundle: {words}; free some, or let TMPDIR there name a larger disk"
    )


def _copy(session: _Session, connection: Connection, files: Mapping[str, Content], timeout_s: float) -> None:
    """Unpack files in the job's folder, over a channel of their own.

    Raises:
        DeviceError: there is no tar, no space, the board takes nothing any more, or the connection is lost.
    """
    assert session.folder
    with tempfile.TemporaryFile() as errors:
        tar = connection.start(f"exec tar -x -m -f - -C {session.folder}", errors)
        assert tar.stdin
        alarm = threading.Timer(timeout_s, tar.kill)
        alarm.daemon = True
        alarm.start()
        try:
            with tarfile.open(fileobj=tar.stdin, mode="w|") as archive:
                for name, content in track(files.items(), f"Copying {len(files)} files to the board"):
                    _add(archive, name, content)
        except BrokenPipeError:
            pass  # it ended, and says why
        end(tar, CLEANING_S)
        alarm.cancel()
        errors.seek(0)
        said = errors.read(1 << 16).decode(errors="replace")
    if tar.returncode == 0:
        return
    address = connection.address
    if connection.closed():
        raise _lost(address)
    full = [line for line in said.splitlines() if FULL.search(line)]
    if full:
        raise _no_space(address, printable(full[0]))
    if tar.returncode == -signal.SIGKILL:
        raise DeviceError(f"{address} did not take the bundle within {timeout_s:g} s; allow more with --timeout")
    if tar.returncode == 127:
        raise DeviceError(f"{address} has no tar ({printable(said)}); install it there: sudo apt-get install tar")
    words = printable("".join(said.splitlines()[:1]))
    raise DeviceError(f"the bundle cannot be copied to {address}; tar there says: {words}")


def _add(archive: tarfile.TarFile, name: str, content: Content) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o700 if PurePosixPath(name).parts[0] == PROGRAMS else 0o600
    if isinstance(content, bytes):
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    entry.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(entry, file)


def _settle(session: _Session, connection: Connection) -> None:
    """Let the agent clean up; if it did not say that it has, sweep after it."""
    end(session.process, CLEANING_S / 3)  # the end of its lifeline
    if session.folder is not None and not session.done and not connection.closed():
        with tempfile.TemporaryFile() as errors:
            end(connection.start(f"rm -rf -- {session.folder}", errors), CLEANING_S / 3)


def _silence(
    session: _Session, connection: Connection, errors: IO[bytes], address: Address, timeout_s: float
) -> DeviceError:
    """The error for a board that did not answer to the end."""
    errors.seek(0)
    said = errors.read(1 << 16).decode(errors="replace")
    if connection.closed():
        return _lost(address)
    if session.stage == "run" and time.monotonic() >= session.deadline:
        return DeviceError(
            f"{address} did not finish within {timeout_s:g} s; allow more with --timeout, or ask for fewer --runs"
        )
    if session.stage == "run":
        return DeviceError(f"what measured on {address} was ended from outside, for want of memory perhaps; try again")
    heard = printable(session.garbage.decode(errors="replace"))
    if session.process.returncode == 1 and session.garbage.startswith(b"/"):
        return DeviceError(f"{address} lets nobody write into {heard}; let TMPDIR there name another folder")
    if session.process.returncode == 255 and not session.garbage:
        return explain(said, address)
    heard = printable(said) if heard == "it said nothing" else heard
    return DeviceError(f"{address} has no shell that works (sh); its last words: {heard}")


def _lost(address: Address) -> DeviceError:
    return DeviceError(
        f"the connection to {address} was lost; what runs there notices it, stops and removes its files. Try again"
    )
