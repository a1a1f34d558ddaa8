"""A board as a machine to measure on: one ssh session, whichever program measures there."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

from edgevit.devices import remote
from edgevit.devices.request import ProfileRequest
from edgevit.devices.ssh.connection import Address, parse_address
from edgevit.devices.ssh.session import BoardSession, connected
from edgevit.errors import DeviceError
from edgevit.schema.measurement import Measurement

PYTHON = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*")


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board; see `edgevit.devices.machine.Machine`. `python` is its Python, for bundles that need one."""

    address: Address
    python: str = "python3"
    kind: str = "ssh"
    emulated: bool = False
    most_images: int | None = None

    @property
    def name(self) -> str:
        return str(self.address)

    def check(self, threads: int | None) -> None:
        """Refuse nothing: what the board is like is asked once it is reached."""

    def measure(self, request: ProfileRequest) -> Measurement:
        """Measure there; see `edgevit.devices.remote.measure`."""
        return remote.measure(self, request)

    def session(self) -> AbstractContextManager[BoardSession]:
        """Return connect; see `edgevit.devices.ssh.session.connected`."""
        return connected(self.address, python=self.python)


def machine(device: str, *, python: str = "python3") -> Board:
    """Return the board `ssh://[user@]host[:port]`.

    Raises:
        DeviceError: no such address, or a Python that a shell could mistake.
    """
    if not PYTHON.fullmatch(python):
        raise DeviceError(
            f"the board's Python must be a plain name or path, got {python!r}; for example: --python venv/bin/python"
        )
    return Board(address=parse_address(device), python=python)
