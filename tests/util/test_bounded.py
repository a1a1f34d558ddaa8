"""A zip whose directory would take all memory is refused by whoever reads zips, before the directory is read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from edgevit.bundle.read import open_bundle
from edgevit.errors import BundleError, WeightsError
from edgevit.frontends.checkpoint import load_checkpoint
from edgevit.util.bounded import open_zip
from edgevit.util.limits import ZIP_DIRECTORY_BYTES
from edgevit.util.ownership import foreign


def zip_of(path: Path, directory_bytes: int) -> Path:
    """A zip with one member, and a directory that says it is there again and again."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")
    raw = path.read_bytes()
    begin, end = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    entry = raw[begin:end]
    directory = entry * (directory_bytes // len(entry))
    stated = raw[end : end + 12] + struct.pack("<II", len(directory), begin) + b"\0\0"
    path.write_bytes(raw[:begin] + directory + stated)
    return path


def test_a_directory_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    small, large = zip_of(tmp_path / "small.zip", 4700), zip_of(tmp_path / "bundle.zip", ZIP_DIRECTORY_BYTES.value + 99)
    with open_zip(small) as archive:
        assert archive.namelist() == ["a"] * 100
    said = "the directory of a zip has 167.* bytes, allowed: 16777216 bytes"
    with pytest.raises(BundleError, match=said), open_bundle(large):
        pass
    assert foreign(large, "archive") == ["bundle.zip"]
    for name in ("weights.pth", "weights.npz"):
        with pytest.raises(WeightsError, match=said):
            load_checkpoint(large.rename(tmp_path / name))
        large = tmp_path / name
