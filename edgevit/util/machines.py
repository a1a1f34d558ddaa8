"""Architectures by the names that operating systems give them, the emulator of another one, and what a CPU lacks."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
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


def lacks_vnni() -> bool:
    """Return whether this is an x86 CPU that adds int8 products in 16 bits, which 8-bit weights can overflow."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in flags
