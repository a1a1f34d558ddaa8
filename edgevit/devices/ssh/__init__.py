"""A board that is reached with the system's own ssh."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevit.devices.ssh.board import Board


def machine(device: str, *, python: str = "python3") -> Board:
    """Return the board `ssh://[user@]host[:port]`; see `edgevit.devices.machine.find`."""
    from edgevit.devices.ssh import board

    return board.machine(device, python=python)
