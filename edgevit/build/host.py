"""What this machine can build and run, target by target, and the fastest of these: `--target host`."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata

from edgevit.backends import MODULES, backend
from edgevit.errors import TargetError
from edgevit.measure.environment import cpu_flags
from edgevit.schema.target import Target, load_target, missing_flags
from edgevit.util.machines import INSTALL_EMULATOR, MACHINES, emulator_path
from edgevit.util.resources import shipped

HOST = "host"  # a target's name: this machine


@dataclass(frozen=True, kw_only=True)
class TargetHealth:
    """Whether a target can be built here, and whether this CPU runs it as a device would."""

    name: str
    builds: bool
    runs_as_device: bool
    remarks: tuple[str, ...]


def fastest() -> tuple[str, ...]:
    """Return the targets that are ranked, from the fastest to the slowest: `targets/fastest.txt`, which says why."""
    lines = (shipped("targets") / "fastest.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))


def runtime_versions() -> dict[str, str | None]:
    """Return the installed version of every package that a runtime comes in (None: it is missing)."""
    return {package: installed(package) for name in MODULES for package in backend(name).PACKAGES}


def installed(package: str) -> str | None:
    """Return the version of an installed package, None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def target_health(target: Target, flags: Collection[str], versions: Mapping[str, str | None]) -> TargetHealth:
    """Say what this machine lacks to build a target and to run it as a device would, each with its remedy.

    Args:
        target: which.
        flags: what this CPU has, as /proc/cpuinfo names it.
        versions: of the runtimes' packages.
    """
    runtime = backend(target.backend)
    remarks = [f"{name} is missing: {runtime.INSTALL}" for name in runtime.PACKAGES if versions[name] is None]
    remarks += runtime.lacking(target, installed=not remarks)
    builds = not remarks
    if platform.machine() != target.arch:
        remarks.append(f"this machine is {platform.machine()}, the target {target.arch}")
        if runtime.NATIVE:
            emulator = emulator_path()
            remarks.append(f"verified here in {emulator}" if emulator else f"not verified here: {INSTALL_EMULATOR}")
    lacking = missing_flags(target, flags) if platform.machine() == target.arch else ()
    if lacking:
        means = "do not run here" if runtime.NATIVE else "run here exactly, but slower than on the target"
        remarks.append(f"this CPU lacks {', '.join(lacking)}: bundles {means}")
    return TargetHealth(name=target.name, builds=builds, runs_as_device=not remarks, remarks=tuple(remarks))


def host_target(machine: str | None = None, *, follows: bool = False) -> tuple[Target, str]:
    """Return the fastest target that this machine can build and run as a device would, and why it is that one.

    With `follows` the Program's number of tokens follows the image: a runtime that saves no time by that comes last.

    Raises:
        TargetError: there is none; says of every target for this architecture what is missing.
    """
    arch, flags, versions = machine or platform.machine(), set(cpu_flags()), runtime_versions()
    passed: list[str] = []
    ranked = [(name, load_target(name)) for name in fastest()]
    if follows:
        ranked.sort(key=lambda each: bool(backend(each[1].backend).FOLLOWING_COSTS))
    for name, target in ranked:
        if arch not in MACHINES[target.arch]:
            continue
        remarks = target_health(target, flags, versions).remarks
        if not remarks:
            rest = f"; faster, but not here: {'; '.join(passed)}" if passed else ""
            where = " where the number of tokens follows the image" if follows else ""
            why = f"the fastest that this machine can build and run{where} ({target.description})"
            return target, f"{name}: {why}{rest}"
        passed.append(f"{name} ({remarks[0]})")
    possible = "".join(f"\n  - {line}" for line in passed) or f" there are none for the architecture {arch}"
    raise TargetError(
        f"no target can be both built and run on this machine:{possible}\nInstall what is missing, or name a target: "
        "`edgevit targets` lists all"
    )
