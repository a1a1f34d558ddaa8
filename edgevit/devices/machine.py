"""Machines that a bundle is measured on, and how one is found by the address that a user gives.

A transport is a folder of this room, and a line of TRANSPORTS that names its module with a function
`machine(device, *, python)`. What that gives is a `Machine`. One that lies elsewhere only has to give sessions in which
files are put there and steps are run: `edgevit/devices/remote.py` measures with that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from edgevit.devices.request import ProfileRequest
from edgevit.schema.measurement import Measurement

# By the scheme of `--device`; None: this machine. An unknown scheme is what ssh refuses.
TRANSPORTS: dict[str | None, str] = {
    None: "edgevit.devices.local",
    "ssh": "edgevit.devices.ssh.board",
    "qemu": "edgevit.devices.qemu.emulate",
}

Content = bytes | Path
# Files of a machine by their path, and what it says to questions by name, see `edgevit/devices/ssh/agent.sh`.
BoardAnswers = Mapping[str, str]


class Machine(Protocol):
    """What a bundle is measured on.

    `kind` stands in the Measurement. An `emulated` machine has no time of its own: what it executes is told instead.
    `most_images` are so many as are run there at most (None: one per run).
    """

    @property
    def kind(self) -> str: ...
    @property
    def emulated(self) -> bool: ...
    @property
    def most_images(self) -> int | None: ...

    def check(self, threads: int | None) -> None:
        """Refuse at once, before a bundle is opened, what cannot be done there.

        Raises:
            DeviceError: it is not there, or has not so many threads.
        """
        ...

    def measure(self, request: ProfileRequest) -> Measurement:
        """Measure an opened bundle with images that are ready for it.

        Raises:
            DeviceError: the machine cannot be reached, lacks something, or gives no measurement.
            BundleError: a file of the bundle is not what it should be.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """A program to run on a machine, in the folder of the files that were put there.

    Attributes:
        name: what its result is found by; a plain word.
        program: its path in that folder, below PROGRAMS; None: the machine's own Python, which finds modules there.
        arguments: passed as they are, through no shell.
        timed: what the machine is like is told of the moments just before and after.
        memory_bytes: the most that the program may hold, where the machine can hold it to that (None: no limit).
    """

    name: str
    program: str | None
    arguments: tuple[str, ...] = ()
    timed: bool = False
    memory_bytes: int | None = None


PROGRAMS = "bin"  # the folder of those files that are to be executable


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What came of a step: exit status (128 and the signal's number), and what it wrote."""

    status: int
    out: str
    err: str
    before: BoardAnswers = field(default_factory=dict)
    after: BoardAnswers = field(default_factory=dict)


class Session(Protocol):
    """A folder on a machine elsewhere, as long as its context; nothing of it stays there."""

    def describe(self) -> BoardAnswers:
        """Return what the machine tells of itself."""
        ...

    def run(self, files: Mapping[str, Content], steps: Sequence[Step], *, timeout_s: float) -> dict[str, StepResult]:
        """Put files into the folder and run steps one after the other, up to one that fails; may be called again.

        Args:
            files: by path in the folder.
            steps: those behind one that failed have no result.
            timeout_s: how long the steps may run.

        Raises:
            DeviceError: no space, out of time, or ended from outside.
        """
        ...


class RemoteMachine(Protocol):
    """A machine elsewhere. `name` is what messages call it, `python` its Python, a name or path there."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def python(self) -> str: ...

    def session(self) -> AbstractContextManager[Session]:
        """Return reach the machine.

        Raises:
            DeviceError: it cannot be reached.
        """
        ...


def find(device: str | None, *, python: str = "python3") -> Machine:
    """Return the machine that `device` names; nothing is reached yet.

    Args:
        device: None for this machine, `ssh://[user@]host[:port]`, `qemu:CPU`.
        python: Python of a board, a name on its PATH or a path (relative to the home folder).

    Raises:
        DeviceError: no such machine.
    """
    scheme = None if device is None else device.partition(":")[0]
    module = importlib.import_module(TRANSPORTS.get(scheme, TRANSPORTS["ssh"]))
    return cast(Machine, module.machine(device, python=python))
