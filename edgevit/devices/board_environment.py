"""What a machine elsewhere tells of itself, read by the code that reads this machine, from copies of its files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath

from edgevit.devices.machine import BoardAnswers
from edgevit.devices.runtimes import NO_PYTHON, machine_names, native_code
from edgevit.errors import DeviceError
from edgevit.measure.environment import cpu_flags, emulator, environment, snapshot
from edgevit.schema.arm_cpus import cpu_of_part
from edgevit.schema.manifest import Bundle
from edgevit.schema.measurement import Environment
from edgevit.schema.target import Target, missing_flags
from edgevit.util.atomic import scratch

GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")
MOST_CPUS = 4096
KNOWN = {("/", "proc"), ("/", "sys"), ("/", "etc")}


def require_arch(target: Target, told: BoardAnswers, address: str) -> None:
    """Refuse a machine of another architecture than a bundle's target, before anything is copied to it.

    Raises:
        DeviceError: it is another one.
    """
    machine = _line(told, "machine")
    if machine not in machine_names(target.arch):
        raise DeviceError(
            f"{address} is {machine}, the bundle's target {target.arch}; build the bundle for a target of that machine"
        )


def require_fit(bundle: Bundle, told: BoardAnswers, address: str, cpus: Collection[int] | None) -> None:
    """Refuse a machine that cannot run a bundle's machine code, before anything is copied to it.

    Raises:
        DeviceError: another architecture, an older C library, a CPU without the instructions, or without these CPUs.
    """
    target = bundle.manifest.target
    require_arch(target, told, address)
    machine, bits = _line(told, "machine"), _line(told, "bits")
    if bits == "32":
        raise DeviceError(
            f"{address} has a 64-bit kernel ({machine}) but 32-bit programs; install its 64-bit system there"
        )
    needed, here = needed_glibc(bundle), glibc(told.get("libc", ""))
    version = ".".join(map(str, needed))
    if "musl" in told.get("libc", "").lower():
        raise DeviceError(f"{address} has musl as its C library; the bundle's runner needs glibc {version}")
    if here is not None and here < needed:
        raise DeviceError(
            f"{address} has glibc {here[0]}.{here[1]}, the bundle's runner needs {version} or newer; update the "
            "board's system, or build the bundle where the compiler's C library is as old"
        )
    with scratch() as folder:
        root = _root(told, folder)
        missing = missing_flags(target, cpu_flags(root)) if cpu_flags(root) else ()
    if missing:
        raise DeviceError(
            f"the CPU of {address} lacks {', '.join(missing)}, which the bundle's code for {target.name} uses; build "
            "for a target that has less"
        )
    allowed = _allowed_cpus(told)
    if cpus is not None and allowed and not set(cpus) <= allowed:
        have = ", ".join(map(str, sorted(allowed)))
        raise DeviceError(f"CPUs {', '.join(map(str, cpus))} were asked for; {address} offers {have}")


def needed_glibc(bundle: Bundle) -> tuple[int, int]:
    """Return the newest version of glibc that the runner, its libraries and the model ask for."""
    found = {
        (int(major), int(minor)) for path in native_code(bundle) for major, minor in GLIBC.findall(path.read_bytes())
    }
    return max(found, default=(2, 0))


def glibc(told: str) -> tuple[int, int] | None:
    """Return the version that `getconf GNU_LIBC_VERSION` or `ldd --version` tells, None if it is none of glibc's."""
    first = next(iter(told.strip().splitlines()), "")
    found = re.search(r"(?:glibc|GNU libc|GLIBC).*?(\d+)\.(\d+)", first)
    return (int(found[1]), int(found[2])) if found else None


def _allowed_cpus(told: BoardAnswers) -> set[int]:
    found = re.search(r"^Cpus_allowed_list:\s*([\d,-]+)$", told.get("/proc/self/status", ""), re.M)
    ranges = [part.split("-") for part in found[1].split(",")] if found else []
    return {cpu for part in ranges if all(part) for cpu in range(int(part[0]), min(int(part[-1]) + 1, MOST_CPUS))}


def environment_of(
    bundle: Bundle,
    told: BoardAnswers,
    before: BoardAnswers,
    after: BoardAnswers,
    *,
    threads: int,
    cpus: tuple[int, ...] | None,
    emulated: bool,
) -> Environment:
    """Describe the machine around the timed runs, by the code that reads this machine.

    Args:
        bundle: what was measured.
        told: what the board told at first.
        before: what it told just before the timed runs.
        after: what it told just after them.
        threads: of a run.
        cpus: those that the runs were held to (None: all).
        emulated: whether the runner itself found an emulator.
    """
    manifest, target = bundle.manifest, bundle.manifest.target
    with scratch() as folder:
        still, *moments = (folder / name for name in ("still", "before", "after"))
        _root(told, still)
        for root, moment in zip(moments, (before, after), strict=True):
            # Types of cooling devices and the like do not change, and are told once.
            _root(told, root)
            _root(moment, root)
        found = environment(
            *(snapshot(root) for root in moments),
            runtime=manifest.backend,
            runtime_version=manifest.tools.get(manifest.backend, ""),
            inference_precision=target.inference_precision,
            threads=threads,
            cpus=cpus,
            root=still,
        )
        distribution = found.system.rpartition(", ")[0]
    part = cpu_of_part(found.cpu_part)
    cores = len(re.findall(r"^processor\s*:", told.get("/proc/cpuinfo", ""), re.M))
    return dataclasses.replace(
        found,
        cpu=part if part and found.cpu == "unknown" else found.cpu,
        arch=target.arch,
        cores=cores or len(_allowed_cpus(told)) or 1,
        system=", ".join(part for part in (distribution, _line(told, "kernel")) if part),
        python=NO_PYTHON,
        emulated_by=found.emulated_by or ("an emulator" if emulated else None),
    )


def emulator_of(told: BoardAnswers) -> str | None:
    """Return the name of the emulator that plays the machine, None on real hardware."""
    with scratch() as folder:
        return emulator(_root(told, folder))


def _root(told: BoardAnswers, folder: Path) -> Path:
    """Put files that a board told where this machine has its own; returns their root."""
    for name, content in told.items():
        path = PurePosixPath(name)
        inside = path.parts[:2] in KNOWN and len(path.parts) > 2 and ".." not in path.parts
        # Only the link below lies in the last one: nothing may be written through it.
        if not inside or path.parts[2] == "thread-self":
            continue
        target = folder.joinpath(*path.parts[1:])
        with suppress(OSError):  # names that no system has, such as one below a file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
    link = folder / "proc/thread-self/exe"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to("/" + re.sub(r"[^\w.-]", "_", PurePosixPath(_line(told, "emulator")).name)[:100])
    return folder


def _line(told: BoardAnswers, name: str) -> str:
    """Return the first line of an answer, without what could steer a terminal."""
    return "".join(c for c in next(iter(told.get(name, "").strip().splitlines()), "") if c.isprintable())[:200]
