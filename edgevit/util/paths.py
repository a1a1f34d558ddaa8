"""Look at what a user named: a name that can be no path, or leads where nobody may look, leads to nothing.

`Path.is_dir` and its like raise OSError for names that are too long and for folders that may not be entered.
"""

from __future__ import annotations

import os
from pathlib import Path


def is_folder(path: Path) -> bool:
    """Return whether a folder is there."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Return whether a regular file is there."""
    return os.path.isfile(path)  # noqa: PTH113


def is_there(path: Path) -> bool:
    """Return whether anything is there, a link that leads nowhere too."""
    return os.path.lexists(path)
