"""The machine a measurement was made on: processor, instruction sets, clock, load, memory, system, runtime."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import DeviceError
from edgevit.measure.throttling import throttle_count, throttling
from edgevit.schema.measurement import ISA, Environment

SAMPLE_S = 0.2  # at least so long is watched what other programs do; the system counts in steps of 10 ms


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What changes during a measurement; None where the system does not tell.

    `busy_s` is the CPU time of all programs since boot, `own_s` that of this one and of those it waited for, at `at_s`.
    """

    frequency_mhz: float | None
    temperature_c: float | None
    load_average: float | None
    throttling: tuple[str, ...] | None = None
    throttle_count: int | None = None
    busy_s: float | None = None
    own_s: float = 0.0
    at_s: float = 0.0


def snapshot(root: Path = Path("/"), *, since: Snapshot | None = None) -> Snapshot:
    """Return clock (mean over the cores), hottest sensor, the last minute's load average and what programs took, now.

    After `since` it waits until there is enough between both to tell what other programs do.
    """
    if since is not None and since.busy_s is not None:
        time.sleep(max(0.0, since.at_s + SAMPLE_S - time.monotonic()))
    sensors = (_number(path) for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")))
    temperatures = [value / 1000 for value in sensors if value is not None]
    load = _read(root / "proc/loadavg").split()
    return Snapshot(
        frequency_mhz=_frequency(root),
        temperature_c=max(temperatures, default=None),
        load_average=float(load[0]) if load else None,
        throttling=throttling(root),
        throttle_count=throttle_count(root),
        busy_s=_busy(root),
        own_s=sum(os.times()[:4]),
        at_s=time.monotonic(),
    )


def environment(
    before: Snapshot,
    after: Snapshot,
    *,
    runtime: str,
    runtime_version: str,
    inference_precision: str,
    threads: int,
    cpus: Sequence[int] | None = None,
    root: Path = Path("/"),
) -> Environment:
    """Describe this machine around a measurement."""
    return Environment(
        cpu=cpu_name(root),
        arch=platform.machine(),
        isa=tuple(flag for flag in ISA if flag in cpu_flags(root)),
        cores=os.cpu_count() or 1,
        governor=_read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        frequency_before_mhz=before.frequency_mhz,
        frequency_after_mhz=after.frequency_mhz,
        temperature_before_c=before.temperature_c,
        temperature_after_c=after.temperature_c,
        load_average_before=before.load_average,
        load_average_after=after.load_average,
        memory_total_bytes=_memory_total(root),
        system=_system(root),
        python=platform.python_version(),
        runtime=runtime,
        runtime_version=runtime_version,
        inference_precision=inference_precision,
        threads=threads,
        cpu_part=_field(root, "CPU part"),
        cpus=None if cpus is None else tuple(cpus),
        throttling=_throttling(before, after),
        emulated_by=emulator(root),
        others_cpus=_others(before, after),
    )


@contextmanager
def pin_to_cpus(cpus: Sequence[int] | None) -> Iterator[None]:
    """Hold this process, and those it starts, to some CPUs; None: as it is.

    Raises:
        DeviceError: a CPU that this process may not use.
    """
    if cpus is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise DeviceError("this system cannot hold a process to CPUs; leave out --cpus")
    allowed = os.sched_getaffinity(0)
    if not set(cpus) <= allowed:
        have = ", ".join(map(str, sorted(allowed)))
        raise DeviceError(f"CPUs {', '.join(map(str, cpus))} were asked for; this machine offers {have}")
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def emulator(root: Path = Path("/")) -> str | None:
    """Name of the user-mode emulator this process runs in, None on real hardware.

    qemu shows its guest another /proc/self/exe, but not another /proc/thread-self/exe.
    """
    try:
        name = (root / "proc/thread-self/exe").readlink().name
    except OSError:
        return None
    return name if "qemu" in name else None


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return flags of the first processor, as /proc/cpuinfo names them; empty where there is no such file."""
    return frozenset((_field(root, "flags") or _field(root, "Features") or "").split())


def cpu_name(root: Path = Path("/")) -> str:
    """Name of the processor; ARM boards tell their own name instead."""
    board = _read(root / "sys/firmware/devicetree/base/model").strip("\0 \n")
    here = platform.processor() if root == Path("/") else ""
    return _field(root, "model name") or board or here or "unknown"


def _frequency(root: Path) -> float | None:
    cores = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [value / 1000 for value in map(_number, cores) if value is not None]
    clocks = clocks or [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _cpuinfo(root), re.M)]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _busy(root: Path) -> float | None:
    """Return seconds that all CPUs worked since boot, for whomever: neither idle nor waiting for a disk."""
    found = re.search(r"^cpu +(\d+(?: \d+)+)$", _read(root / "proc/stat"), re.M)
    if found is None:
        return None
    user, nice, system, _idle, _iowait, *rest = (*map(int, found[1].split()), 0, 0, 0, 0, 0)
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")  # and interrupts, and what a host took


def _others(before: Snapshot, after: Snapshot) -> float | None:
    """CPUs that other programs kept busy between two moments; None where they are too near, or nothing is told."""
    passed = after.at_s - before.at_s
    if before.busy_s is None or after.busy_s is None or passed < SAMPLE_S:
        return None
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return round(max(0.0, others / passed), 2)


def _throttling(before: Snapshot, after: Snapshot) -> tuple[str, ...] | None:
    """Return signs of either moment, and the counted events between them."""
    if before.throttling is None and after.throttling is None and after.throttle_count is None:
        return None
    signs = dict.fromkeys([*(before.throttling or ()), *(after.throttling or ())])
    events = (after.throttle_count or 0) - (before.throttle_count or 0)
    return (*signs, *([f"throttled for heat {events} times"] if events > 0 else []))


def _memory_total(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.M)
    return int(found[1]) * 1024 if found else None


def _system(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"), re.M)
    kernel = f"{platform.system()} {platform.release()}"
    return f"{found[1]}, {kernel}" if found else kernel


def _field(root: Path, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+)$", _cpuinfo(root), re.M)
    return found[1].strip() if found else None


def _cpuinfo(root: Path) -> str:
    return _read(root / "proc/cpuinfo")


def _number(path: Path) -> float | None:
    text = _read(path).strip()
    return float(text) if re.fullmatch(r"-?\d+", text) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not this kind of system, or a sensor that is asleep
        return ""
