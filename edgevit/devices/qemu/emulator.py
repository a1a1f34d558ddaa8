"""An aarch64 machine without a board: qemu in user mode runs the aarch64 user land that `userland` sets up.

Emulation tells what a processor computes and which instructions it executes, never how long that takes.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevit.devices import confined
from edgevit.errors import DeviceError
from edgevit.schema.arm_cpus import ARM_CPUS, ArmCpu
from edgevit.util.atomic import scratch

SCHEME = "qemu:"
LAST_WORDS = 300
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # here, because nothing may be loaded between fork and exec


@dataclass(frozen=True, kw_only=True)
class Userland:
    """What `userland.setup` made.

    Attributes:
        folder: where it lies.
        emulator: the qemu program.
        emulator_version: as it tells it.
        libraries: folder of libraries that qemu needs and this machine does not have, None if it has all.
        python: the user land's Python, below `folder`.
        plugin: the compiled instruction counter, None where qemu or a C compiler does not allow it.
        uncounted: why there is none.
        accountant: the compiled accountant of the heap, None where there is no cross compiler.
        unaccounted: why there is none.
        runtimes: backends that run there.
        packages: what is in it, name to version.
    """

    folder: Path
    emulator: Path
    emulator_version: str
    libraries: Path | None
    python: str
    plugin: Path | None
    uncounted: str
    accountant: Path | None
    unaccounted: str
    runtimes: tuple[str, ...]
    packages: Mapping[str, str]

    @property
    def site(self) -> Path:
        """Return where its Python packages lie."""
        return self.folder / "site"


@dataclass(frozen=True, kw_only=True)
class Counter:
    """What the instruction counter writes, see `count.c`; `misses` are the runs whose misses of `caches` are told."""

    out: Path
    blocks: Path | None = None
    caches: str = ""
    misses: tuple[int, ...] = ()


def parse(device: str) -> ArmCpu:
    """Return the processor of `qemu:NAME`.

    Raises:
        DeviceError: none of that name.
    """
    name = device.removeprefix(SCHEME)
    if name not in ARM_CPUS:
        known = ", ".join(f"{SCHEME}{cpu.name} ({cpu.sold_as})" for cpu in ARM_CPUS.values())
        raise DeviceError(f"no emulated device {device!r}; known: {known}")
    return ARM_CPUS[name]


def run(
    userland: Userland,
    cpu: ArmCpu,
    arguments: Sequence[str],
    *,
    folder: Path,
    paths: Sequence[Path] = (),
    counts: Counter | None = None,
    heap: bool = False,
    timeout_s: float,
    memory_bytes: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the user land's Python on an emulated processor.

    Args:
        userland: what to run it in.
        cpu: the processor.
        arguments: of Python.
        folder: the working folder; nothing else is written.
        paths: more folders of Python modules, searched after the user land's own.
        counts: files for the instruction counter; None runs without it.
        heap: let the accountant count the heap, where there is one.
        timeout_s: when to give up.
        memory_bytes: the most that the emulator may hold, its guest's memory included; qemu ignores a guest's limits.

    Raises:
        DeviceError: time is up, or qemu itself failed.
    """

    def begin() -> None:
        end_with_parent()
        if memory_bytes is not None:
            confined.limit(resource.RLIMIT_DATA, memory_bytes)

    with started(userland, cpu, counts, heap=heap) as command:
        # By its own path, which stays the same, so that modules compiled once are found again.
        command += [str(userland.folder / "root/usr/bin" / userland.python)]
        command += ["-X", f"pycache_prefix={userland.folder / 'pycache'}"]
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=_environment(userland, paths, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=begin,
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise too_slow(cpu, timeout_s) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    if process.returncode < 0:
        raise DeviceError(f"qemu ended by signal {-process.returncode} on {cpu.name}: {last_words(err)}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def started(
    userland: Userland, cpu: ArmCpu, counts: Counter | None = None, *, heap: bool = False
) -> Iterator[list[str]]:
    """Give the command that starts the emulator, up to the program of its guest; it holds as long as the context."""
    with scratch() as prefix:
        preload = []
        if heap and userland.accountant is not None:
            # qemu parts variables at commas: by a name that surely has none.
            link = prefix / "heap.so"
            link.symlink_to(userland.accountant)
            preload = ["-E", f"LD_PRELOAD={link}"]
        yield [*_qemu(userland, cpu, prefix), *_plugin(userland, counts), *preload]


def end_with_parent() -> None:
    """Let the kernel end this process, the emulator to be, when the one that started it ends, however it does."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def too_slow(cpu: ArmCpu, timeout_s: float) -> DeviceError:
    """Return the error for time that is up."""
    return DeviceError(
        f"the emulated {cpu.name} did not finish within {timeout_s:g} s; an emulator is 20 to 50 times slower "
        "than this machine: give it more time with --timeout, or fewer images"
    )


def last_words(text: str) -> str:
    """Return the last line of an output, for an error message."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return re.sub(r"[^\x20-\x7e]", "?", lines[-1])[-LAST_WORDS:] if lines else "it said nothing"


def cpuinfo(cpu: ArmCpu) -> str:
    """Return what /proc/cpuinfo of a Linux on this processor says."""
    fields = {
        "processor": "0",
        "Features": " ".join(cpu.features),
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": cpu.part,
        "CPU revision": "0",
    }
    return "".join(f"{name}\t: {value}\n" for name, value in fields.items()) + "\n"


def _qemu(userland: Userland, cpu: ArmCpu, prefix: Path) -> list[str]:
    """Return the emulator's command up to its program; `prefix` becomes the folder that its guest sees as / first."""
    for name in ("lib", "usr"):
        (prefix / name).symlink_to(userland.folder / "root" / name)
    # Guests read the processor from here, and some crash on an x86 one.
    (prefix / "proc").mkdir()
    (prefix / "proc/cpuinfo").write_text(cpuinfo(cpu), encoding="ascii")
    # The guest must not look for its libraries among those of qemu.
    return [str(userland.emulator), "-cpu", cpu.qemu, "-L", str(prefix), "-U", "LD_LIBRARY_PATH"]


def _plugin(userland: Userland, counts: Counter | None) -> list[str]:
    if counts is None:
        return []
    if userland.plugin is None:
        raise DeviceError(f"no instructions can be counted: {userland.uncounted}")
    option = f"{_quoted(userland.plugin)},out={_quoted(counts.out)}"
    option += f",blocks={_quoted(counts.blocks)}" if counts.blocks else ""
    if counts.caches:
        option += f",caches={counts.caches},misses={'+'.join(map(str, counts.misses))}"
    return ["-plugin", option]


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")


def environment(userland: Userland) -> dict[str, str]:
    """Return what the emulator and its guest find in their environment."""
    found = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    if userland.libraries is not None:
        found["LD_LIBRARY_PATH"] = str(userland.libraries)
    return found


def _environment(userland: Userland, paths: Sequence[Path], folder: Path) -> dict[str, str]:
    return {
        **environment(userland),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # The user land first: this machine's packages are for another processor.
        "PYTHONPATH": os.pathsep.join(map(str, (userland.site, *paths))),
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0",
    }
