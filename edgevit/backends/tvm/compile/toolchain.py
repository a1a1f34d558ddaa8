"""Tools that compile for an architecture, this machine's own or another one."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from types import MappingProxyType

from edgevit.errors import RuntimeMissingError
from edgevit.util.machines import MACHINES

# How Debian writes them in package names.
PACKAGES: Mapping[str, str] = MappingProxyType({"x86_64": "x86-64", "aarch64": "aarch64"})


def linker(architecture: str) -> str:
    """Return the g++ that compiles and links for an architecture.

    Raises:
        RuntimeMissingError: it is not installed; names Debian's package.
    """
    native = platform.machine() in MACHINES[architecture]
    found = "g++" if native else f"{architecture}-linux-gnu-g++"
    if shutil.which(found) is None:
        package = "g++" if native else f"g++-{PACKAGES[architecture]}-linux-gnu"
        raise RuntimeMissingError(
            f"{found} is not installed, and links libraries for {architecture}; on Debian: apt install {package}"
        )
    return found
