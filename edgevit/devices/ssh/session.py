"""A session on a board: files are put into a folder of its own there, programs run in it, and nothing of it stays.

The board needs sh and tar, and what its programs need.
"""

from __future__ import annotations

import io
import re
import secrets
import shlex
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from edgevit.devices.machine import PROGRAMS, BoardAnswers, Content, Step, StepResult
from edgevit.devices.ssh.connection import Address, Connection, connect, end, explain
from edgevit.devices.ssh.lines import Lines
from edgevit.errors import DeviceError
from edgevit.util.progress import track
from edgevit.util.text import printable

AGENT = Path(__file__).with_name("agent.sh")
MARK = re.compile(rb"EDGEVIT-(FILE|READY|DONE)(?: (.*))?")
FOLDER = re.compile(r"/(?:[A-Za-z0-9._-]+/)*edgevit-[A-Za-z0-9_]{8}")
START_S = 120  # for the board to say that it is ready
CLEANING_S = 30
ANSWERS_LIMIT_BYTES = 256 << 20
RESERVE_BYTES = 16 << 20  # for what a run itself writes
# One line that every login shell hands on as it is; it reads the agent itself from stdin.
BOOT = (
    'n=$(printf "\\nx"); n=${n%x}; p=; while IFS= read -r l; '
    'do case $l in EDGEVIT-END) eval "$p"; exit;; esac; p=$p$l$n; done'
)
FULL = re.compile(r"no space|file too large|disk quota|wrote only", re.IGNORECASE)


class BoardSession(Lines):
    """See `edgevit.devices.machine.Session`; `stage` is what is being waited for."""

    def __init__(self, connection: Connection, errors: IO[bytes], *, python: str) -> None:
        super().__init__(connection.start(f"exec sh -c '{BOOT}'", errors), START_S)
        self._connection, self._errors, self._python = connection, errors, python
        self._address = connection.address
        self._folder: str | None = None
        self._stage = "start"
        self._timeout_s = 0.0
        self._done = False
        self._described: BoardAnswers | None = None

    def describe(self) -> BoardAnswers:
        """Return what the board tells of itself.

        Raises:
            DeviceError: it has no shell that works, or no folder to write into.
        """
        if self._described is None:
            name = f"edgevit-{secrets.token_hex(4)}"
            self._say(f"name={name}\n{AGENT.read_text(encoding='utf-8')}\nreceive\nobey\nEDGEVIT-END\n")
            answers = self._answers()
            if answers is None or self._folder is None:
                raise self._silence()
            self._described, self._stage = answers, "idle"
        return self._described

    def run(self, files: Mapping[str, Content], steps: Sequence[Step], *, timeout_s: float) -> dict[str, StepResult]:
        """Put files into the folder there and run steps; see `edgevit.devices.machine.Session.run`."""
        described = self.describe()
        self._timeout_s = timeout_s
        if files:
            self._require_space(described, files)
            self._stage = "copy"
            self._copy(files)
        self._stage = "run"
        self.deadline = time.monotonic() + timeout_s
        self._say(" && ".join(self._call(step) for step in steps) + "\n")
        answers = self._answers()
        if answers is None or self._done:
            raise self._silence()
        self._stage = "idle"
        return {step.name: _result(step, answers) for step in steps if f"./{step.name}.status" in answers}

    def close(self) -> None:
        """Let the agent clean up; if it does not say that it has, sweep after it."""
        if self._stage == "idle":
            self.deadline = time.monotonic() + CLEANING_S / 3
            self._say("finish; exit\n")
            while not self._done and self._answers() is not None:
                pass
        self._settle()

    def _settle(self) -> None:
        end(self.process, CLEANING_S / 3)  # the end of its lifeline
        if self._folder is not None and not self._done and not self._connection.closed():
            with tempfile.TemporaryFile() as errors:
                end(self._connection.start(f"rm -rf -- {self._folder}", errors), CLEANING_S / 3)
            self._done = True

    def _say(self, text: str) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # what it said last is read below

    def _answers(self) -> BoardAnswers | None:
        """Return everything up to the next READY or DONE; None if neither comes."""
        found: dict[str, list[bytes]] = {}
        current: list[bytes] | None = None
        size = 0
        while (line := self.next()) is not None and size < ANSWERS_LIMIT_BYTES:
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
            self._folder = folder
        self._done = word == b"DONE" and not folder

    def _call(self, step: Step) -> str:
        """Return the line of shell that runs a step, whose functions are the agent's."""
        assert self._folder
        command = ["run", step.name]
        if step.program is None:
            command += ["python", self._python]
        else:
            command += [] if step.memory_bytes is None else ["held", str(step.memory_bytes >> 10)]
            command.append(step.program)
        call = shlex.join([*command, *step.arguments])
        before, after = (f"moment {step.name}.{when}: >{step.name}.{when}.told" for when in ("before", "after"))
        return f"{{ {before}; {call} && {after}; }}" if step.timed else call

    def _require_space(self, described: BoardAnswers, files: Mapping[str, Content]) -> None:
        rows = [line.split() for line in described.get("space", "").splitlines()[1:]]
        free = next((int(row[3]) * 1024 for row in rows if len(row) > 5 and row[3].isdigit()), None)
        needed = sum(
            content.stat().st_size if isinstance(content, Path) else len(content) for content in files.values()
        )
        if free is not None and free < needed + RESERVE_BYTES:
            raise _no_space(self._address, f"{free} bytes are free, needed: {needed + RESERVE_BYTES}")

    def _copy(self, files: Mapping[str, Content]) -> None:
        """Unpack files in the folder, over a channel of their own.

        Raises:
            DeviceError: there is no tar, no space, the board takes nothing any more, or the connection is lost.
        """
        with tempfile.TemporaryFile() as errors:
            tar = self._connection.start(f"exec tar -x -m -f - -C {self._folder}", errors)
            assert tar.stdin
            alarm = threading.Timer(self._timeout_s, tar.kill)
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
        if tar.returncode:
            raise self._not_copied(tar.returncode, said)

    def _not_copied(self, status: int, said: str) -> DeviceError:
        address = self._address
        if self._connection.closed():
            return _lost(address)
        full = [line for line in said.splitlines() if FULL.search(line)]
        if full:
            return _no_space(address, printable(full[0]))
        if status == -signal.SIGKILL:
            return DeviceError(
                f"{address} did not take the bundle within {self._timeout_s:g} s; allow more with --timeout"
            )
        if status == 127:
            return DeviceError(f"{address} has no tar ({printable(said)}); install it there: sudo apt-get install tar")
        words = printable("".join(said.splitlines()[:1]))
        return DeviceError(f"the bundle cannot be copied to {address}; tar there says: {words}")

    def _silence(self) -> DeviceError:
        """Return the error for a board that did not answer to the end."""
        self._settle()
        self._errors.seek(0)
        said, address = self._errors.read(1 << 16).decode(errors="replace"), self._address
        if self._connection.closed():
            return _lost(address)
        if self._stage == "run" and time.monotonic() >= self.deadline:
            return DeviceError(
                f"{address} did not finish within {self._timeout_s:g} s; allow more with --timeout, or ask for fewer "
                "--runs"
            )
        if self._stage == "run":
            return DeviceError(f"what measured on {address} was ended from outside, possibly out of memory; try again")
        heard = printable(self.garbage.decode(errors="replace"))
        if self.process.returncode == 1 and self.garbage.startswith(b"/"):
            return DeviceError(f"{address} lets nobody write into {heard}; let TMPDIR there name another folder")
        if self.process.returncode == 255 and not self.garbage:
            return explain(said, address)
        heard = printable(said) if heard == "it said nothing" else heard
        return DeviceError(f"{address} has no shell that works (sh); its last words: {heard}")


@contextmanager
def connected(address: Address, *, python: str = "python3") -> Iterator[BoardSession]:
    """Connect to a board for as long as the context.

    Args:
        address: the board.
        python: what steps without a program run there, a name on its PATH or a path (relative to the home folder).

    Raises:
        DeviceError: not reached, or refused.
    """
    with connect(address) as connection, tempfile.TemporaryFile() as errors:
        session = BoardSession(connection, errors, python=python)
        try:
            yield session
        finally:
            session.close()


def _result(step: Step, answers: BoardAnswers) -> StepResult:
    status = answers[f"./{step.name}.status"].strip()
    moments = (
        {key.removeprefix(mark): text for key, text in answers.items() if key.startswith(mark)}
        for mark in (f"{step.name}.before:", f"{step.name}.after:")
    )
    before, after = moments
    return StepResult(
        status=int(status) if re.fullmatch(r"[0-9]{1,3}", status) else 1,
        out=answers.get(f"./{step.name}.out", ""),
        err=answers.get(f"./{step.name}.err", ""),
        before=before,
        after=after,
    )


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


def _no_space(address: Address, words: str) -> DeviceError:
    return DeviceError(
        f"{address} has no space for the bundle: {words}; free some, or let TMPDIR there name a larger disk"
    )


def _lost(address: Address) -> DeviceError:
    return DeviceError(
        f"the connection to {address} was lost; what runs there notices it, stops and removes its files. Try again"
    )
