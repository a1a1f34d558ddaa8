"""Set up, list and remove the device that edgevit emulates on this machine."""

from __future__ import annotations

from edgevit.backends import DEFAULT
from edgevit.devices.qemu import userland
from edgevit.devices.qemu.userland import DEFAULT_CPUS, NAME, RUNTIMES
from edgevit.schema.arm_cpus import ARM_CPUS

__all__ = ["ARM_CPUS", "DEFAULT", "DEFAULT_CPUS", "NAME", "RUNTIMES", "userland"]
