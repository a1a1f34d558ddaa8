"""Where edgevit's folders lie: those that ship with it, in a checkout or the installed package, and its cache."""

from __future__ import annotations

import os
from pathlib import Path

from edgevit.errors import OutputError
from edgevit.util.atomic import scratch, sweep

_REMEDY = "set EDGEVIT_CACHE to a folder of yours, or XDG_CACHE_HOME to its parent"
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """Return the folder `name` (`targets` or `calibration`): the packaged copy, else the checkout's own."""
    packaged = _PACKAGE / "_shipped" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def user_cache() -> Path:
    """Return the folder for what edgevit fetched or compiled on this machine and can have again; it need not exist.

    EDGEVIT_CACHE, else `edgevit` in XDG_CACHE_HOME, else in `.cache` of the home folder.

    Raises:
        OutputError: none of them is set, and there is no home folder.
    """
    own, shared = os.environ.get("EDGEVIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own).absolute()
    # Where it is no absolute path the XDG specification has it ignored.
    return (Path(shared) if Path(shared).is_absolute() else _home() / ".cache") / "edgevit"


def usable_cache() -> Path:
    """Return the same folder, there and tried: to be asked before work that cannot do without it.

    Raises:
        OutputError: there is none, or it cannot be written.
    """
    folder = user_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with scratch(folder, "try"):
            return folder
    except OSError as error:
        raise OutputError(
            f"the cache folder {folder} cannot be written: {error.strerror or error}; {_REMEDY}"
        ) from error


def _home() -> Path:
    """Return the user's home folder: HOME, else what the system's list of users says.

    Raises:
        OutputError: neither names a folder that is there; the root folder is nobody's home.
    """
    home = os.environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111  Path.home() raises where nobody knows
    named = f"HOME is {home}" if os.environ.get("HOME") else "HOME is not set and the system knows no other"
    if not Path(home).is_absolute() or Path(home) == Path("/") or not os.path.isdir(home):  # noqa: PTH112  never raises
        raise OutputError(f"there is no home folder to keep a cache in ({named}); {_REMEDY}")
    return Path(home)
