"""What this machine can build and run, and what is missing, with the command that installs it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgevit import __version__
from edgevit.backends.tvm.compile.toolchain import MACHINES, linker
from edgevit.backends.tvm.run.process import INSTALL_EMULATOR, emulator_path
from edgevit.backends.tvm.run.runtime import llvm_architectures
from edgevit.devices.qemu import estimate, userland
from edgevit.errors import DeviceError, RuntimeMissingError, TargetError
from edgevit.measure.environment import cpu_flags
from edgevit.schema.target import Target, list_targets, load_target, missing_flags

PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "safetensors",
    "pillow",
    "rich",
    "openvino",
    "apache-tvm",
    "apache-tvm-ffi",
    "torch",
    "torchvision",
    "timm",
)
RUNTIME_PACKAGES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "tvm": ("apache-tvm", "apache-tvm-ffi")}
INSTALL = {
    **dict.fromkeys(("torch", "torchvision", "timm"), "pip install 'edgevit[train]'"),
    **dict.fromkeys(("apache-tvm", "apache-tvm-ffi"), "pip install 'edgevit[tvm]'"),
    "openvino": "pip install 'edgevit[openvino]'",
}
# From the fastest to the slowest wherever a CPU has what they need. Measured side by side in reports/reference/: with
# VNNI in peers-vnni.md, with AVX2 in backends.md, for ARM by executed instructions in arm.md and arm-tvm.md.
FASTEST = (
    *("x86-64-avx512vnni-tvm", "x86-64-openvino", "x86-64-avxvnni-tvm", "x86-64-onnxruntime", "x86-64-v4-tvm"),
    *("x86-64-v3-tvm", "x86-64-avx2-onnxruntime"),
    *("armv8.6-i8mm-tvm", "cortex-a76-tvm", "armv8.6-i8mm-onnxruntime", "rpi5-onnxruntime"),
    *("cortex-a72-tvm", "cortex-a53-tvm", "rpi4-onnxruntime"),
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package edgevit can use; `install` is the command that gets it where it is missing."""

    name: str
    version: str | None
    install: str


@dataclass(frozen=True, kw_only=True)
class TargetHealth:
    """Whether a target can be built here, and whether this CPU runs it as a device would."""

    name: str
    builds: bool
    runs_as_device: bool
    remarks: tuple[str, ...]


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
    versions = {name: _version(name) for name in PACKAGES}
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
        targets=tuple(_target(load_target(name), set(flags), versions) for name in list_targets()),
        compress=all(versions[name] for name in ("torch", "timm")),
    )


def host_target(machine: str | None = None) -> tuple[Target, str]:
    """Return the fastest target that this machine can build and run as a device would, and why it is that one.

    Raises:
        TargetError: there is none; says of every target for this architecture what is missing.
    """
    arch, flags = machine or platform.machine(), set(cpu_flags())
    versions = {name: _version(name) for names in RUNTIME_PACKAGES.values() for name in names}
    passed: list[str] = []
    for name in FASTEST:
        target = load_target(name)
        if arch not in MACHINES[target.arch]:
            continue
        remarks = _target(target, flags, versions).remarks
        if not remarks:
            rest = f"; faster, but not here: {'; '.join(passed)}" if passed else ""
            return target, f"{name}: the fastest that this machine can build and run ({target.description}){rest}"
        passed.append(f"{name} ({remarks[0]})")
    possible = "".join(f"\n  - {line}" for line in passed) or f" there are none for the architecture {arch}"
    raise TargetError(
        f"no target can be both built and run on this machine:{possible}\nInstall what is missing, or name a target: "
        "`edgevit targets` lists all"
    )


def _emulation() -> tuple[Package, ...]:
    """What `edgevit profile --device qemu:CPU` uses, beyond what it sets up itself."""
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


def _target(target: Target, flags: set[str], versions: dict[str, str | None]) -> TargetHealth:
    remarks = [f"{n} is missing: {_install(n)}" for n in RUNTIME_PACKAGES[target.backend] if versions[n] is None]
    if target.backend == "tvm":
        remarks += _compiling(target, tvm_installed=not remarks)
    builds = not remarks
    if platform.machine() != target.arch:
        remarks.append(f"this machine is {platform.machine()}, the target {target.arch}")
        if target.backend == "tvm":
            emulator = emulator_path()
            remarks.append(f"verified here in {emulator}" if emulator else f"not verified here: {INSTALL_EMULATOR}")
    lacking = missing_flags(target, flags) if platform.machine() == target.arch else ()
    if lacking:
        means = "do not run here" if target.backend == "tvm" else "run here exactly, but slower than on the target"
        remarks.append(f"this CPU lacks {', '.join(lacking)}: bundles {means}")
    return TargetHealth(name=target.name, builds=builds, runs_as_device=not remarks, remarks=tuple(remarks))


def _compiling(target: Target, *, tvm_installed: bool) -> list[str]:
    """What is missing to compile machine code for the target."""
    remarks = []
    try:
        linker(target.arch)
    except RuntimeMissingError as error:
        remarks.append(str(error))
    if not tvm_installed:
        return remarks
    try:
        known = llvm_architectures()
    except RuntimeMissingError as error:
        return [*remarks, str(error)]
    if target.arch not in known:
        remarks.append(f"the installed TVM cannot compile for {target.arch}, only for: {', '.join(known) or 'nothing'}")
    return remarks


def _install(package: str) -> str:
    return INSTALL.get(package, "pip install edgevit")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    if sys.platform != "linux":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
