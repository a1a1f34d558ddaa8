"""The bundle as one `.zip`: a folder named after it, compressed, with the executable bits of its files.

What compresses so well that whoever opens it would have to take it for a zip bomb, such as weights that are nearly all
0, is stored as it is.
Equal bundles give equal bytes where zlib is the same: members are in order, and the time stamp is fixed.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from edgevit.util.limits import BUNDLE_EXPANSION

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
LEVEL = 9


def top_folder(name: str) -> str:
    """Return the folder that everything in the zip of a bundle of this name lies in."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".-")[:100].rstrip(".")
    return plain or "bundle"


def pack(content: Path, target: Path, top: str) -> None:
    """Write all files below `content` to the zip `target`, below `top`."""
    names = sorted(path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file())
    _write(content, target, top, names, zipfile.ZIP_DEFLATED)
    if sum((content / name).stat().st_size for name in names) > BUNDLE_EXPANSION.value * target.stat().st_size:
        _write(content, target, top, names, zipfile.ZIP_STORED)
    target.chmod(0o644)


def _write(content: Path, target: Path, top: str, names: Sequence[str], kind: int) -> None:
    with zipfile.ZipFile(target, "w", compression=kind, compresslevel=LEVEL) as archive:
        for name in names:
            path = content / name
            info = zipfile.ZipInfo(f"{top}/{name}", date_time=EPOCH)
            info.create_system = 3  # Unix, wherever it is written
            info.external_attr = (path.stat().st_mode & 0xFFFF) << 16
            info.compress_type = kind
            archive.writestr(info, path.read_bytes(), compresslevel=LEVEL)
