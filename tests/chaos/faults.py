"""Let disks, files, memory and clocks fail under commands: one message, the right exit code, nothing half-written.

Every fault is made in the process of the command alone: limits of the system, and mounts in a name space of its own
(by root, or by anybody where the kernel lets users make name spaces).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import commands
from tests.chaos.commands import GIVEN, OUT, Command, strays
from tests.chaos.run import Ended, forked

OUTPUT, MEMORY = 16, 22
# Of a file that is gone: model, Program, target, images, bundle.
GONE = (0, 12, 13, 14, 15, 19, 20, 21)
FILE_BYTES = (0, 100, 1000, 4000, 16_000, 64_000, 256_000, 1 << 20, 4 << 20)
DISK_BYTES = (16 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20)
ROOM_BYTES = (0, 4 << 20, 16 << 20, 48 << 20, 96 << 20, 192 << 20)
OPENINGS = (0, 1, 2, 3, 5, 8, 13, 21, 34)
_NEWNS, _NEWUSER = 0x20000, 0x10000000
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One fault at one command: how it ended, and what was wrong with that ('' if nothing was)."""

    command: str
    fault: str
    code: int
    said: str
    wrong: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong.

    Attributes:
        name: of it, with its size.
        within: the context that lets it go wrong in the process of the command, for a folder.
        codes: with which exit codes the command may end.
    """

    name: str
    within: Callable[[Path], contextlib.AbstractContextManager[object]]
    codes: Sequence[int]


def attempt(command: Command, root: Path, fault: Fault) -> Tried:
    """Run a command while something goes wrong, over outputs of version 1 where there are some."""
    commands.empty(root)
    kept = root / "kept"
    if kept.exists():
        shutil.copytree(kept, root / OUT, symlinks=True, dirs_exist_ok=True)
    ended = forked(
        command.arguments(root, 2),
        root,
        enter=lambda: command.enter(root, 2),
        within=lambda: _checked(command, root, fault),
    )
    return Tried(
        command=command.name,
        fault=fault.name,
        code=ended.code,
        said=message(ended)[:300],
        wrong=_wrong(ended, fault.codes),
    )


@contextlib.contextmanager
def _checked(command: Command, root: Path, fault: Fault) -> Iterator[None]:
    """Look at what is there before a mount goes, in the process that has it; complain on standard error."""
    with fault.within(root):
        yield
    left = strays(root, command.left)
    tempfile.tempdir = str(root)  # the usual place may be what cannot be written
    versions = command.versions(root)
    if left or any(len(together) != 1 for together in versions):
        print(f"CHAOS: left {sorted(left)}, versions {versions}", file=sys.stderr)


def _wrong(ended: Ended, codes: Sequence[int]) -> str:
    told = [line for line in ended.said.splitlines() if line.startswith("CHAOS: ")]
    if ended.crashed or told:
        return ended.crashed or told[0]
    if ended.code not in codes:
        return f"ended with {ended.code}: {message(ended)}"
    if ended.code and not message(ended):
        return f"ended with {ended.code} and said nothing"
    return ""


def message(ended: Ended) -> str:
    """Return the last thing that the command said in its own name, without the names that a process makes up."""
    lines = [line for line in ended.said.splitlines() if line.startswith("edgevit: ")]
    last = lines[-1].removeprefix("edgevit: ").removeprefix("error: ") if lines and ended.code else ""
    return unnumbered(last)


def unnumbered(text: str) -> str:
    """Return text without process numbers and random parts of names: equal runs say equal things."""
    return re.sub(r"(?<=[a-z])-\d+(?=/)", "", re.sub(r"edgevit-\d+-\w+", "edgevit-*", text))


def file_limit(size: int) -> Fault:
    """No file may grow beyond `size` bytes, of this process or one that it starts."""

    @contextlib.contextmanager
    def within(_: Path) -> Iterator[None]:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    return Fault(name=f"files of at most {size} bytes", within=within, codes=(0, OUTPUT))


def full_disk(place: str, size: int) -> Fault:
    """`place` lies on a disk of `size` bytes, with what was in it."""

    @contextlib.contextmanager
    def within(root: Path) -> Iterator[None]:
        own_mounts()
        before = root / f"{place}.before"
        shutil.copytree(root / place, before, symlinks=True, dirs_exist_ok=True)
        # What is there already fits; the rest is the room that is left.
        held = sum(-(-path.lstat().st_size // 4096) * 4096 + 4096 for path in before.rglob("*"))
        mount("tmpfs", root / place, "tmpfs", 0, f"size={held + size}")
        shutil.copytree(before, root / place, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(before)
        yield

    return Fault(name=f"{_NAMED[place]} with {size} bytes left", within=within, codes=(0, OUTPUT))


def read_only(place: str) -> Fault:
    """`place` cannot be written to."""

    @contextlib.contextmanager
    def within(root: Path) -> Iterator[None]:
        own_mounts()
        _make_read_only(root / place)
        yield

    return Fault(name=f"{_NAMED[place]} read-only", within=within, codes=(OUTPUT, 21) if place == OUT else (0, OUTPUT))


def read_only_install() -> Fault:
    """The package's own folder cannot be written to, which no command should even try."""

    @contextlib.contextmanager
    def within(_: Path) -> Iterator[None]:
        own_mounts()
        _make_read_only(Path(commands.__file__).parents[2] / "edgevit")
        yield

    return Fault(name="the installed package read-only", within=within, codes=(0,))


_NAMED = {OUT: "the disk of the output", "tmp": "the disk of TMPDIR"}


def vanish(moment: int) -> Fault:
    """All that the command reads is removed just before it opens the file `moment` of it."""

    @contextlib.contextmanager
    def within(root: Path) -> Iterator[None]:
        given, gone = root / GIVEN, root / "gone"
        shutil.copytree(given, gone, symlinks=True, dirs_exist_ok=True)
        seen = 0

        def hear(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event == "open" and str(arguments[0]).startswith(f"{given}/") and seen <= moment:
                seen += 1
                if seen == moment + 1:
                    for path in given.iterdir():
                        if path.name != "tools":
                            shutil.rmtree(path) if path.is_dir() else path.unlink()

        sys.addaudithook(hear)
        try:
            yield
        finally:
            shutil.rmtree(given)
            gone.rename(given)

    return Fault(name=f"what it reads is removed at its opening number {moment}", within=within, codes=GONE)


def memory_limit(room: int) -> Fault:
    """The process may take `room` bytes of address space beyond what it has."""

    @contextlib.contextmanager
    def within(_: Path) -> Iterator[None]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    return Fault(name=f"{room} bytes of memory left", within=within, codes=(0, MEMORY))


def clock_back() -> Fault:
    """Every look at the clock shows a day less than the one before, and all files there are of the year 2100."""

    @contextlib.contextmanager
    def within(root: Path) -> Iterator[None]:
        for path in (*(root / OUT).rglob("*"), *(root / GIVEN).rglob("*")):
            if not path.is_symlink():
                os.utime(path, (4102444800, 4102444800))
        begin, looks, real = time.time(), 0, time.time

        def now() -> float:
            nonlocal looks
            looks += 1
            return begin - 86_400 * looks

        time.time = now
        try:
            yield
        finally:
            time.time = real

    return Fault(name="a clock that runs backwards, files of 2100", within=within, codes=(0,))


def every(mounts: bool) -> Iterator[Fault]:
    """All faults in all sizes; those of disks only where this process may mount."""
    yield from map(file_limit, FILE_BYTES)
    if mounts:
        for place in (OUT, "tmp"):
            yield from (full_disk(place, size) for size in DISK_BYTES)
            yield read_only(place)
        yield read_only_install()
    yield from map(memory_limit, ROOM_BYTES)
    yield from map(vanish, OPENINGS)
    yield clock_back()


def own_mounts() -> None:
    """Give this process a name space of its own for mounts; user name spaces make that possible without root."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_NEWNS | (_NEWUSER if user else 0)):
        raise OSError(ctypes.get_errno(), "this system lets no user mount anything: run this as root")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount("none", Path("/"), "", _REC | _PRIVATE, "")


def mountable() -> bool:
    """Whether `own_mounts` works here."""
    child = os.fork()
    if not child:
        try:
            own_mounts()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def mount(source: str, place: Path, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(place), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def _make_read_only(place: Path) -> None:
    mount(str(place), place, "", _BIND | _REC, "")
    locked = os.statvfs(place).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    mount("none", place, "", _BIND | _REMOUNT | _RDONLY | locked, "")


def stdout_full(command: Command, root: Path, more: Sequence[str] = ("--json",)) -> Tried:
    """What a command prints goes to a full disk."""
    ended = forked(
        [*command.arguments(root, 2), *more], root, enter=lambda: command.enter(root, 2), within=lambda: _full_stdout()
    )
    return Tried(
        command=f"{command.name} {' '.join(more)}".strip(),
        fault="standard output on a full disk",
        code=ended.code,
        said=message(ended),
        wrong=_wrong(ended, (OUTPUT,)),
    )


@contextlib.contextmanager
def _full_stdout() -> Iterator[None]:
    full = os.open("/dev/full", os.O_WRONLY)
    assert stat.S_ISCHR(os.fstat(full).st_mode)
    os.dup2(full, 1)
    yield
