"""An emulated processor: qemu in user mode, its user land, and what its counted instructions say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevit.devices.qemu.emulate import QemuMachine


def machine(device: str, *, python: str = "python3") -> QemuMachine:
    """Return the emulated processor `qemu:NAME`; see `edgevit.devices.machine.find`. It brings its own Python."""
    from edgevit.devices.qemu import emulate

    return emulate.machine(device)
