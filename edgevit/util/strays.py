"""Names of what is made for a moment. They prove by themselves that edgevit made it: nothing else is ever swept.

A folder of somebody's own may well be called `edgevit-2-notebook`. So the random part of our names is followed by eight
digits of a digest of what is before them, which no other name has but once in 4 billion.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

_NAME = re.compile(r"(?:\..+\.)?edgevit-([0-9]+-[0-9a-f]{8})([0-9a-f]{8})")
_SHOWN_CHARACTERS = 40  # of the name that something is made for; a name has 255 bytes at most


def stray_name(name: str = "", process: int | None = None) -> str:
    """Return a new name, hidden if it says for which `name` something is made, of this process or another one."""
    before = f".{name[:_SHOWN_CHARACTERS]}." if name else ""
    made = f"{os.getpid() if process is None else process}-{secrets.token_hex(4)}"
    return f"{before}edgevit-{made}{_check(made)}"


def is_stray(name: str) -> bool:
    """Return whether a name is one that `stray_name` made."""
    found = _NAME.fullmatch(name)
    return found is not None and _check(found[1]) == found[2]


def make_folder(parent: Path, name: str) -> Path:
    """Make a folder under a new name, for its owner alone, and return its path."""
    while True:
        folder = parent / stray_name(name)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder


def make_file(path: Path) -> tuple[int, Path]:
    """Make a file beside `path` under a new name, for its owner alone; return its open descriptor and its path."""
    while True:
        made = path.with_name(stray_name(path.name))
        try:
            return os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), made
        except FileExistsError:
            continue


def _check(made: str) -> str:
    return hashlib.sha256(f"edgevit-{made}".encode()).hexdigest()[:8]
