"""Renames that replace nothing or exchange, as far as the system has them, and what makes them last."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOREPLACE, EXCHANGE = 1, 2
_HERE = -100  # AT_FDCWD: paths mean what they mean to this process
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def rename_new(source: Path, target: Path) -> None:
    """Rename where there is nothing yet; FileExistsError if there is."""
    if rename(source, target, NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def rename(source: Path, target: Path, flags: int) -> bool:
    """Return Linux's renameat2; False where the system or the file system has none."""
    call = _renameat2()
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@functools.cache
def _renameat2() -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return found


def inode(path: Path) -> int | None:
    """Return the number by which what lies there is known; None where nothing does."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def sync_tree(path: Path) -> None:
    """Have the disk hold a file, or a folder with all that is in it."""
    if not path.is_dir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return
    for child in path.iterdir():
        if not child.is_symlink():
            sync_tree(child)
    sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
