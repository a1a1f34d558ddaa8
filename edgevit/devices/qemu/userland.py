"""Set up, list and remove the aarch64 user land that `emulator` runs: a folder of the user's, no root, no container.

Its C library, C++ library and Python are the distribution's own arm64 packages, fetched by apt-get (which checks the
signed lists) and unpacked, not installed; its wheels are those of `wheels.txt`, fetched by pip (which checks the
hashes). Both use whatever registries this machine is configured for. qemu is this machine's, or fetched by apt-get.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.backends import DEFAULT, MODULES, SILENCED, backend
from edgevit.devices.qemu import packages
from edgevit.devices.qemu.emulator import Counter, Userland, last_words, run
from edgevit.errors import DeviceError, OutputError
from edgevit.schema.arm_cpus import ARM_CPUS, ArmCpu
from edgevit.util import atomic, strict_json
from edgevit.util.atomic import scratch
from edgevit.util.progress import Say
from edgevit.util.resources import user_cache

NAME = "qemu"
RECORD = "device.json"
SCHEMA = 1
RUNTIMES = {name: backend(name).WHEELS for name in MODULES if backend(name).WHEELS}
COMMON = ("numpy", "pillow")
DEFAULT_CPUS = ("cortex-a72", "cortex-a76", "armv8.6-i8mm")
TRIAL_S = 300
# Loads what a bundle needs, and says which machine it is on; the loop between the marks is there to be counted.
TRIAL = f"""
import ctypes, importlib, json, platform, sys
sys.modules.update(dict.fromkeys({SILENCED!r}))
modules = [importlib.import_module(name) for name in sys.argv[1:]]
call = ctypes.CDLL(None).syscall
call(0x7ffe, 1)
sum(range(1000))
call(0x7ffe, 2)
print(json.dumps([platform.machine(), [m.__version__ for m in modules]]))
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """`device.json`: what is in the folder; `made_from` is a digest of what it was made by, to know an old one."""

    schema: int = SCHEMA
    made_from: str
    python: str
    emulator: str
    emulator_version: str
    libraries: str | None
    plugin: str | None
    uncounted: str
    accountant: str | None
    unaccounted: str
    runtimes: tuple[str, ...]
    cpus: tuple[str, ...]
    packages: dict[str, str]
    sha256: dict[str, str]


def devices_folder() -> Path:
    """Return where devices lie: EDGEVIT_DEVICES, else below the user's cache folder.

    Raises:
        DeviceError: the user has no cache folder.
    """
    own = os.environ.get("EDGEVIT_DEVICES")
    try:
        return Path(own) if own else user_cache() / "devices"
    except OutputError as error:
        raise DeviceError(f"there is no emulated device: {error}, or EDGEVIT_DEVICES for devices alone") from error


def setup(
    runtimes: Sequence[str] = (DEFAULT,), cpus: Sequence[str] = DEFAULT_CPUS, *, say: Say = lambda _: None
) -> Userland:
    """Fetch, unpack and try the user land; it appears whole or not at all, and replaces one that is there.

    Args:
        runtimes: backends to have; those of a user land that is there are kept.
        cpus: names of `schema.arm_cpus.ARM_CPUS` to try it on.
        say: told what is being done.

    Raises:
        DeviceError: a tool is missing, a registry does not answer, or what came does not run.
        OutputError: something else is where it belongs.
    """
    packages.require_tools()
    with _locked() as parent, scratch(parent, NAME) as temporary:
        stage, there = temporary / NAME, parent / NAME
        atomic.refuse_foreign(there, "device")
        old = _record(there)
        wanted = tuple(sorted({*runtimes, *(old.runtimes if old else ())}))
        stage.mkdir()
        say("Looking for qemu")
        qemu = packages.find_qemu(stage / "host", say)
        say("Fetching the aarch64 user land (C library, C++ library, Python)")
        python, debs = packages.fetch_root(stage / "root", temporary)
        say(f"Fetching aarch64 wheels: {', '.join(_requirements(wanted))}")
        wheels = packages.fetch_wheels(_requirements(wanted), python, temporary)
        for wheel in wheels:
            with zipfile.ZipFile(wheel.path) as archive:
                archive.extractall(stage / "site")
        plugin, uncounted = packages.compile_counter(stage, qemu)
        accountant, unaccounted = packages.compile_accountant(stage)
        fetched = (*qemu.packages, *debs, *wheels)
        record = Record(
            made_from=packages.digest(),
            python=python,
            emulator=_relative(qemu.program, stage),
            emulator_version=qemu.version,
            libraries=None if qemu.libraries is None else _relative(qemu.libraries, stage),
            plugin=None if plugin is None else plugin.name,
            uncounted=uncounted,
            accountant=None if accountant is None else accountant.name,
            unaccounted=unaccounted,
            runtimes=wanted,
            cpus=tuple(cpus),
            packages={item.name: item.version for item in fetched},
            sha256={item.name: item.sha256 for item in fetched},
        )
        record = _try(record, stage, [ARM_CPUS[name] for name in cpus], say)
        strict_json.write_atomic(stage / RECORD, strict_json.dumps(record))
        shutil.rmtree(stage / "pycache", ignore_errors=True)  # of paths that are about to change
        atomic.install(temporary, {NAME: (there, "device")}, replace=True, sync=False)  # it can be had again
    userland = _userland(record, there)
    # Modules are compiled per path: once here, instead of at the first use.
    _trial(userland, ARM_CPUS[cpus[0]], None)
    return userland


def installed() -> Userland:
    """Return the user land that `setup` made.

    Raises:
        DeviceError: there is none, or one of another edgevit.
    """
    folder = devices_folder() / NAME
    record = _record(folder)
    if record is None:
        state = "made by another version of edgevit" if os.path.isdir(folder) else "not set up"  # noqa: PTH112  never raises
        raise DeviceError(f"the emulated device is {state}; run: edgevit device setup {NAME}")
    return _userland(record, folder)


def remove() -> bool:
    """Remove the user land; False if there was none.

    Raises:
        OutputError: what is there is something else.
    """
    with _locked() as parent:
        if not os.path.lexists(parent / NAME):
            return False
        atomic.refuse_foreign(parent / NAME, "device")
        with scratch(parent, NAME) as temporary:
            (parent / NAME).rename(temporary / "old")
        return True


def size_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _requirements(runtimes: Sequence[str]) -> tuple[str, ...]:
    unknown = set(runtimes) - RUNTIMES.keys()
    if unknown:
        raise DeviceError(f"no aarch64 runtime {', '.join(sorted(unknown))}; known: {', '.join(RUNTIMES)}")
    return (*COMMON, *(name for runtime in runtimes for name in RUNTIMES[runtime]))


def _try(record: Record, folder: Path, cpus: Sequence[ArmCpu], say: Say) -> Record:
    """Run it on every processor; an instruction counter that does not count is left out, with the reason."""
    for cpu in cpus:
        say(f"Trying it on {cpu.name}")
        _trial(_userland(record, folder), cpu, None)
    if record.plugin is None:
        return record
    userland, counts = _userland(record, folder), folder / "counts"
    try:
        _trial(userland, cpus[0], Counter(out=counts))
        lines = counts.read_text(encoding="ascii").splitlines()
        works = len(lines) == 2 and sum(map(int, lines[1].split())) > 0
        reason = "" if works else "the counter counted nothing"
    except (DeviceError, OSError, ValueError) as error:
        reason = f"{record.emulator_version} does not run the counter: {error}"
    counts.unlink(missing_ok=True)
    return replace(record, plugin=None, uncounted=reason) if reason else record


def _trial(userland: Userland, cpu: ArmCpu, counts: Counter | None) -> None:
    modules = ["numpy", "PIL", *userland.runtimes]
    with scratch() as folder:  # for what the runtimes leave where they run
        done = run(userland, cpu, ["-c", TRIAL, *modules], folder=folder, counts=counts, timeout_s=TRIAL_S)
    try:
        machine, _ = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        machine = None
    if done.returncode or machine != "aarch64":
        raise DeviceError(f"what was fetched does not run on the emulated {cpu.name}: {last_words(done.stderr)}")


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _userland(record: Record, folder: Path) -> Userland:
    return Userland(
        folder=folder,
        emulator=folder / record.emulator,
        emulator_version=record.emulator_version,
        libraries=None if record.libraries is None else folder / record.libraries,
        python=record.python,
        plugin=None if record.plugin is None else folder / record.plugin,
        uncounted=record.uncounted,
        accountant=None if record.accountant is None else folder / record.accountant,
        unaccounted=record.unaccounted,
        runtimes=record.runtimes,
        packages=record.packages,
    )


def _record(folder: Path) -> Record | None:
    """Read `device.json`; None if there is none, or it is of another edgevit."""
    try:
        data = strict_json.read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    record = strict_json.from_data(Record, data, [])
    return record if record and (record.schema, record.made_from) == (SCHEMA, packages.digest()) else None


@contextmanager
def _locked() -> Iterator[Path]:
    """Give the devices' folder to one edgevit at a time."""
    folder = devices_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Nothing that is called so is emptied, followed elsewhere or waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.fdopen(os.open(folder / ".lock", flags, 0o600), "rb", buffering=0)
    except OSError as error:
        raise DeviceError(
            f"{folder} cannot be written: {error.strerror}; set EDGEVIT_DEVICES or EDGEVIT_CACHE to a folder of yours"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeviceError(f"another edgevit is changing the devices in {folder}; wait for it") from None
        atomic.sweep(folder)
        yield folder
