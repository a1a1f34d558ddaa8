"""Architectures by the names that operating systems give them, and the emulator that runs another one's programs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from types import MappingProxyType

# The first name is ours.
MACHINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"x86_64": ("x86_64", "AMD64"), "aarch64": ("aarch64", "arm64")}
)
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
INSTALL_EMULATOR = "apt install qemu-user-static"


def emulator_path() -> str | None:
    """Return the emulator of aarch64, if there is one."""
    return next((found for name in EMULATORS if (found := shutil.which(name))), None)
