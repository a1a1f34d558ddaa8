"""Tools that compile for an architecture, this machine's own or another one, with the C library that a target names."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgevit.errors import OutputError, RuntimeMissingError, TargetError
from edgevit.util.machines import MACHINES

# How Debian writes them in package names.
PACKAGES: Mapping[str, str] = MappingProxyType({"x86_64": "x86-64", "aarch64": "aarch64"})
LIBC = re.compile(r"glibc(?:-(\d+)\.(\d+))?|musl|bionic")
LIBCS = "glibc, glibc-VERSION such as glibc-2.17, musl, bionic"
NDK = "Android's NDK, and let ANDROID_NDK_HOME name its folder (or cc of the target its clang)"
NDK_PLACES = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT")


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A C compiler for an architecture.

    Attributes:
        arch: `x86_64` or `aarch64`.
        cc: the compiler's name or path.
        sysroot: where it finds the C library of the device; None: where it does by itself.
        libc: `glibc`, `glibc-2.17` for what must run with that version, `musl` or `bionic`.
    """

    arch: str
    cc: str
    sysroot: str | None = None
    libc: str = "glibc"

    @property
    def newest_glibc(self) -> tuple[int, int] | None:
        """Return the version of glibc that no symbol may be newer than; None where it does not matter."""
        found = LIBC.fullmatch(self.libc)
        return (int(found[1]), int(found[2])) if found and found[1] else None

    def run(self, *arguments: str | Path) -> None:
        """Compile or link.

        Raises:
            OutputError: the compiler refuses; its words are in the message.
        """
        root = [f"--sysroot={self.sysroot}"] if self.sysroot else []
        _run([self.cc, *root, *map(str, arguments)])

    def tool(self, name: str, *arguments: str | Path) -> str:
        """Run the compiler's own `ar`, `nm` or `objcopy` and return what it prints.

        Raises:
            OutputError: it refuses.
            RuntimeMissingError: there is none.
        """
        return _run([self._found(name), *map(str, arguments)])

    def _found(self, name: str) -> str:
        for each in (name, f"llvm-{name}"):
            done = subprocess.run([self.cc, f"-print-prog-name={each}"], capture_output=True, text=True, check=False)
            found = shutil.which(done.stdout.strip()) if done.returncode == 0 else None
            # The system's own tools read other architectures' files only where they say so.
            own = found and (Path(done.stdout.strip()).is_absolute() or platform.machine() in MACHINES[self.arch])
            if found and (own or each != name):
                return found
        raise RuntimeMissingError(f"{self.cc} comes without {name}; install its binutils")


def toolchain(arch: str, *, cc: str | None = None, sysroot: str | None = None, libc: str | None = None) -> Toolchain:
    """Return the C compiler for an architecture.

    Args:
        arch: `x86_64` or `aarch64`.
        cc: its name or path (default: the one that Debian has for the architecture and the C library).
        sysroot: where the device's C library and its headers are.
        libc: see `Toolchain`.

    Raises:
        RuntimeMissingError: it is not installed; says what to install.
        TargetError: no such architecture, or C library.
    """
    libc = libc or "glibc"
    if arch not in PACKAGES:
        raise TargetError(
            f"there are kernels for {' and '.join(PACKAGES)}, got arch {arch!r}; microcontrollers (Cortex-M and the "
            "like) are not supported: a ViT needs megabytes of memory and vectors of floats"
        )
    if not LIBC.fullmatch(libc):
        raise TargetError(f"libc: got {libc!r}, allowed: {LIBCS}")
    name, package = (cc, f"the package that has {cc}") if cc else _default(arch, libc)
    if sysroot is not None and not Path(sysroot).is_dir():
        raise RuntimeMissingError(
            f"sysroot {sysroot} is not a folder; copy the device's /lib and /usr there, or omit it"
        )
    if shutil.which(name) is None:
        raise RuntimeMissingError(
            f"{name} is not installed, and compiles C for {arch} with {libc}; install: {package}"
            if cc or not package.startswith("apt ")
            else f"{name} is not installed, and compiles C for {arch} with {libc}; on Debian: {package}"
        )
    return Toolchain(arch=arch, cc=name, sysroot=sysroot, libc=libc)


def _default(arch: str, libc: str) -> tuple[str, str]:
    """Return a compiler's usual name, and what to install."""
    native = platform.machine() in MACHINES[arch]
    if libc == "bionic":
        return _ndk_compiler(f"{arch}-linux-android24-clang"), NDK
    if libc == "musl":
        return ("musl-gcc", "apt install musl-tools") if native else (f"{arch}-linux-musl-gcc", "a cross compiler")
    if native:
        return "gcc", "apt install gcc"
    return f"{arch}-linux-gnu-gcc", f"apt install gcc-{PACKAGES[arch]}-linux-gnu"


def _ndk_compiler(name: str) -> str:
    """Return the path of a compiler of the NDK that the environment names; its name, to be found elsewhere, if none."""
    roots = [Path(os.environ[place]) for place in NDK_PLACES if os.environ.get(place)]
    found = [path for root in roots for path in sorted(root.glob(f"toolchains/llvm/prebuilt/*/bin/{name}"))]
    return str(found[0]) if found else name


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


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OutputError(f"{Path(command[0]).name} fails:\n{done.stderr.strip()[-4000:]}")
    return done.stdout
