"""What this machine can build and run, and what is missing, with the command that installs it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from edgevit import __version__
from edgevit.backends import DEFAULT, MODULES, backend
from edgevit.build.host import TargetHealth, installed, runtime_versions, target_health
from edgevit.devices.qemu import estimate, userland
from edgevit.errors import DeviceError
from edgevit.measure.environment import cpu_flags
from edgevit.schema.target import list_targets, load_target

OURS = ("numpy", "onnx", *backend(DEFAULT).PACKAGES, "safetensors", "pillow", "rich")
TRAINING = ("torch", "torchvision", "timm")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package edgevit can use; `install` is the command that gets it where it is missing."""

    name: str
    version: str | None
    install: str


@dataclass(frozen=True, kw_only=True)
class Health:
    """The whole diagnosis. Sizes in bytes."""

    edgevit: str
    python: str
    arch: str
    cpu_flags: tuple[str, ...]
    memory_bytes: int | None
    disk_free_bytes: int
    data: str | None
    packages: tuple[Package, ...]
    emulation: tuple[Package, ...]
    targets: tuple[TargetHealth, ...]
    compress: bool


def diagnose() -> Health:
    """Look at this machine; nothing heavy is imported and nothing is changed."""
    flags = cpu_flags()
    runtimes = runtime_versions()
    names = dict.fromkeys((*OURS, *runtimes, *TRAINING))
    versions = {name: runtimes[name] if name in runtimes else installed(name) for name in names}
    interesting = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    return Health(
        edgevit=__version__,
        python=platform.python_version(),
        arch=platform.machine(),
        cpu_flags=tuple(f for f in interesting if f in flags),
        memory_bytes=_memory(),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        data=os.environ.get("EDGEVIT_DATA"),
        packages=tuple(Package(name=n, version=v, install=_install(n)) for n, v in versions.items()),
        emulation=_emulation(),
        targets=tuple(target_health(load_target(name), set(flags), runtimes) for name in list_targets()),
        compress=all(versions[name] for name in ("torch", "timm")),
    )


def _emulation() -> tuple[Package, ...]:
    """Return what `edgevit profile --device qemu:CPU` uses, beyond what it sets up itself."""
    try:
        device: str | None = userland.installed().emulator_version
    except DeviceError:
        device = None
    mca, cross = estimate.find_mca(), shutil.which("aarch64-linux-gnu-gcc")
    return (
        Package(name="emulated device", version=device, install=f"edgevit device setup {userland.NAME}"),
        Package(name="cycle estimate", version=mca.version if mca else None, install=estimate.INSTALL),
        Package(name="heap accountant", version=cross, install="sudo apt-get install gcc-aarch64-linux-gnu"),
    )


def _install(package: str) -> str:
    if package in TRAINING:
        return "pip install 'edgevit[train]'"
    return next((backend(name).INSTALL for name in MODULES if package in backend(name).PACKAGES), "pip install edgevit")


def _memory() -> int | None:
    if sys.platform != "linux":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
