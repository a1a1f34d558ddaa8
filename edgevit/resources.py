"""Where edgevit's folders lie: those that ship with it, in a checkout or the installed package, and its cache."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """Return the folder `name` (`targets` or `calibration`): the packaged copy, else the checkout's own."""
    packaged = _PACKAGE / "_shipped" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def user_cache() -> Path:
    """The folder for what edgevit fetched or compiled on this machine and can have again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgevit"
