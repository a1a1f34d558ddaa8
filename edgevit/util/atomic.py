"""Files and folders appear whole or not at all, whatever ends the process; what it leaves goes at the next start.

Everything is made under a name of its own (`strays.py`), `.NAME.edgevit-PID-...` beside its place or `edgevit-PID-...`
in the temporary folder, which its process holds locked (flock). Then it is put in place by renames. A process that is
killed leaves its strays without a lock: `sweep` removes these, and finishes first what was half put in place. Only
what edgevit wrote is ever replaced, see `refuse_foreign`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from edgevit.errors import OutputError
from edgevit.util import ownership, renames
from edgevit.util.ownership import Kind
from edgevit.util.signals import signals_wait
from edgevit.util.strays import is_stray, make_file, make_folder

PLAN = "plan.json"
OLD = ".old"  # after the name of what is staged: what was in its place
TURN_S = 60
REMOVALS, REMOVAL_PAUSE_S = 5, 0.05
ROOM_BYTES = 1 << 16  # a disk with less is full


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rename of a plan: the staged `source` to `target` beside the staging folder, known by inode numbers.

    `old` is what was in its place (None: nothing), `kind` what that must be to be replaced.
    """

    source: str
    target: str
    kind: Kind
    new: int
    old: int | None


def write_file(path: Path, content: bytes, *, sync: bool = True, replace: bool = True) -> None:
    """Write a file by temporary name and rename; `sync` makes it last through a loss of power.

    Raises:
        FileExistsError: there is something already, and `replace` is false.
        OSError: the disk refuses.
    """
    with new_file(path, sync=sync, replace=replace) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path, *, sync: bool = True, replace: bool = True) -> Iterator[BinaryIO]:
    """Open what becomes `path`, whole, when the context ends without an error; see `write_file`."""
    handle, temporary = _new_file(path)
    with os.fdopen(handle, "wb") as file:
        try:
            yield file
            file.flush()
            os.fchmod(handle, 0o644)
            if sync:
                os.fsync(handle)
            if replace:
                temporary.replace(path)
            else:
                renames.rename_new(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if sync:
        renames.sync_folder(path.parent)


@contextlib.contextmanager
def scratch(parent: Path | None = None, name: str = "") -> Iterator[Path]:
    """An empty folder that is gone after the context, or after the next start if the process is killed.

    Runtimes and compilers that write into it seldom say that a disk refused: what fails while it does is told as that.

    Args:
        parent: where it lies (None: the folder for temporary files).
        name: of what it is made for; gives a hidden folder.

    Raises:
        OutputError: something failed in the context, and the folder's disk takes no more.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    if not name:
        _sweep_once(parent)
    folder = lock = None
    try:
        with signals_wait():  # none comes between the folder and knowing of it
            folder, lock = _new_folder(parent, name)
        yield folder
    except Exception as error:
        if folder is None:
            raise
        # These say it themselves; NumPy's OSError has no number.
        said = isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno is not None)
        refused = "" if said else _refused(folder)
        if refused:
            raise OutputError(
                f"{folder} cannot be written: {refused}; make room there, or choose another place with -o and TMPDIR"
            ) from error
        raise
    finally:
        try:
            with signals_wait():
                _remove(folder)
                if lock is not None:
                    os.close(lock)
        except BaseException:  # a signal that came before it could wait
            _remove(folder)
            raise


def _remove(folder: Path | None) -> None:
    """Remove a folder; again where what a stopped command had started still writes into it."""
    if folder is None:
        return
    for _ in range(REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            break
        time.sleep(REMOVAL_PAUSE_S)


def _refused(folder: Path) -> str:
    """Why a disk takes no more in a folder, in its words; empty if it does."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    with contextlib.suppress(OSError):
        if most != resource.RLIM_INFINITY and any(path.lstat().st_size >= most for path in folder.rglob("*")):
            return os.strerror(errno.EFBIG)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def install(staging: Path, moves: Mapping[str, tuple[Path, Kind]], *, replace: bool, sync: bool = True) -> None:
    """Put what lies in a `scratch` folder into places beside that folder: all of it, or none.

    Args:
        staging: the folder; what was replaced lies in it afterwards.
        moves: a name in it to a place, and the kind of what may be replaced there.
        replace: whether anything may be replaced at all.
        sync: have it last through a loss of power too.

    Raises:
        OutputError: something is there that is not to be replaced.
        OSError: the disk refuses; everything is as it was.
    """
    for source in moves if sync else ():
        renames.sync_tree(staging / source)
    with _turn(staging.parent), signals_wait():
        steps = [_step(staging, source, *place, replace=replace) for source, place in moves.items()]
        _write_plan(staging, steps)
        try:
            for step in steps:
                _move(staging, step)
        except BaseException:
            for step in reversed(steps):
                _undo(staging, step)
            (staging / PLAN).unlink()
            raise
        renames.sync_folder(staging.parent)


def refuse_foreign(path: Path, kind: Kind) -> None:
    """Refuse to replace what does not prove to be written by edgevit; to be asked before long work.

    Args:
        path: an output; nothing there, or an empty folder where a folder is to come, is fine.
        kind: what it must be.

    Raises:
        OutputError: it is something else, holds something else, or is a link; the message names what is in the way.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise OutputError(f"{path} is a link, and edgevit replaces none; give the path it leads to, or another one")
    in_the_way = ownership.foreign(path, kind)
    if in_the_way:
        more = f" and {len(in_the_way) - 3} more" if len(in_the_way) > 3 else ""
        held = f" (in the way: {', '.join(in_the_way[:3])}{more})" if path.is_dir() else ""
        raise OutputError(
            f"{path} is not {ownership.WORDS[kind]} and nothing else{held}; it will not be replaced: "
            "choose another place, or move it away"
        )


def refuse_inside(path: Path) -> None:
    """Refuse an output that would lie in a bundle: with a file that it does not list it counts as damaged.

    Raises:
        OutputError: it would; the message names the bundle.
    """
    bundle = ownership.bundle_around(path)
    if bundle is not None:
        raise OutputError(f"{path} lies in the bundle {bundle}, which one more file would damage; choose another place")


def refuse_existing(path: Path, kind: Kind, *, force: bool, word: str = "--force") -> None:
    """Refuse an output that is there already, with `force` only what `refuse_foreign` does, and any inside a bundle.

    What killed processes left in its folder is swept first.

    Raises:
        OutputError: see above; `word` is the option that would allow it.
    """
    refuse_inside(path)
    sweep(path.parent)
    if force:
        refuse_foreign(path, kind)
    elif os.path.lexists(path):
        raise OutputError(f"{path} exists already; choose another place, or pass {word} to replace it")


def sweep(parent: Path) -> None:
    """Remove what killed processes of this user left in a folder; a replacement that they had begun is finished."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if is_stray(entry.name)]
    except OSError:
        return
    for name in names:
        lock = _claim(parent / name)
        if lock is None:
            continue
        try:
            if stat.S_ISDIR(os.fstat(lock).st_mode):
                _finish(parent / name)
                shutil.rmtree(parent / name)
            else:
                (parent / name).unlink()
        except OSError:  # what cannot be finished or removed stays
            pass
        finally:
            os.close(lock)


@functools.cache
def _sweep_once(parent: Path) -> None:
    sweep(parent)


def _new_folder(parent: Path, name: str) -> tuple[Path, int | None]:
    """Return a folder and its lock; None on a file system without locks, where nobody sweeps either."""
    while True:
        folder = make_folder(parent, name)
        lock = _claim(folder)
        if lock is not None or folder.is_dir():  # else somebody swept it before it was locked
            return folder, lock


def _new_file(path: Path) -> tuple[int, Path]:
    while True:
        handle, made = make_file(path)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, made
        os.close(handle)


def _claim(path: Path) -> int | None:
    """Return lock a file or folder of this user; None if another process holds it, or it is neither."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, there = os.fstat(handle), path.lstat()
        plain = stat.S_ISDIR(held.st_mode) or stat.S_ISREG(held.st_mode)
        if plain and held.st_uid == os.geteuid() and os.path.samestat(held, there):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


@contextlib.contextmanager
def _turn(parent: Path) -> Iterator[None]:
    """One process at a time puts things into a folder, for what must fit together."""
    handle = os.open(parent, os.O_RDONLY)
    try:
        end = time.monotonic() + TURN_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise OutputError(f"another process holds {parent} locked; wait for it, then try again") from None
                time.sleep(0.02)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)


def _step(staging: Path, source: str, target: Path, kind: Kind, *, replace: bool) -> Step:
    if target.parent != staging.parent:
        raise ValueError(f"{target} does not lie beside {staging}")
    old = renames.inode(target)
    if old is not None and not replace:
        raise OutputError(f"{target} exists already: it was made meanwhile; choose another place")
    refuse_foreign(target, kind)
    new = renames.inode(staging / source)
    assert new is not None
    return Step(source=source, target=target.name, kind=kind, new=new, old=old)


def _write_plan(staging: Path, steps: list[Step]) -> None:
    with (staging / PLAN).open("w", encoding="utf-8") as file:
        json.dump([asdict(step) for step in steps], file)
        file.flush()
        os.fsync(file.fileno())
    renames.sync_folder(staging)


def _finish(staging: Path) -> None:
    """Do the rest of a plan of which a part was done, unless its places were changed since."""
    try:
        steps = [Step(**step) for step in json.loads((staging / PLAN).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # killed before the plan was whole
        return
    if any("/" in name for step in steps for name in (step.source, step.target)):
        return
    left = [step for step in steps if renames.inode(staging.parent / step.target) != step.new]
    begun = len(left) < len(steps) or any(renames.inode(staging / (step.source + OLD)) for step in steps)
    if begun and all(_ready(staging, step) for step in left):
        for step in left:
            _move(staging, step)


def _ready(staging: Path, step: Step) -> bool:
    """Return whether a step's source and place are what they were when it was planned."""
    source, target = staging / step.source, staging.parent / step.target
    there = renames.inode(target)
    known = there == step.old or (there is None and renames.inode(staging / (step.source + OLD)) == step.old)
    ours_alone = there is None or not ownership.foreign(target, step.kind)
    return renames.inode(source) == step.new and known and ours_alone


def _move(staging: Path, step: Step) -> None:
    """Do a step at once, or, on a system without exchange, in an order that can be taken up again."""
    source, target = staging / step.source, staging.parent / step.target
    if os.path.lexists(target) and not renames.rename(source, target, renames.EXCHANGE):
        target.rename(source.with_name(source.name + OLD))
    if renames.inode(source) == step.new:
        renames.rename_new(source, target)


def _undo(staging: Path, step: Step) -> None:
    """Take a step back, however far it came."""
    source, target = staging / step.source, staging.parent / step.target
    kept = source.with_name(source.name + OLD)
    if renames.inode(target) == step.new and not (
        os.path.lexists(source) and renames.rename(source, target, renames.EXCHANGE)
    ):
        target.rename(source)
    if os.path.lexists(kept):
        kept.rename(target)
