"""A bundle's zip: one folder, compressed, programs stay programs; and it opens however it was packed again."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from edgevit.bundle import write
from edgevit.bundle.packed import pack, top_folder
from edgevit.bundle.read import open_bundle
from edgevit.errors import BundleError
from edgevit.util.ownership import foreign
from tests.bundles import sample_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "mine"
    return sample_bundle(folder, files={write.EXECUTABLE[0]: b"\x7fELF program"})


def test_all_of_it_lies_in_a_folder_of_its_name(folder: Path) -> None:
    with zipfile.ZipFile(folder.parent / "mine.zip") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"tiny"}
        stored = sum(member.file_size for member in archive.infolist())
    assert (folder.parent / "mine.zip").stat().st_size < 0.9 * stored
    assert foreign(folder.parent / "mine.zip", "archive") == []


def test_what_compresses_all_too_well_still_opens(tmp_path: Path) -> None:
    sample_bundle(tmp_path / "zeros", files={"zeros.bin": bytes(20_000_000)})
    with open_bundle(tmp_path / "zeros.zip") as bundle:
        assert (bundle.folder / "zeros.bin").stat().st_size == 20_000_000


def test_what_may_be_executed_may_be_still(folder: Path) -> None:
    with open_bundle(folder.parent / "mine.zip") as bundle:
        may = {file.path for file in bundle.manifest.files if os.access(bundle.folder / file.path, os.X_OK)}
    assert may == {file for file in write.EXECUTABLE if (folder / file).is_file()} and may


@pytest.mark.parametrize("top", ["", "another/"])
@pytest.mark.parametrize("folders", [False, True])
def test_it_opens_packed_by_others_too(folder: Path, tmp_path: Path, top: str, folders: bool) -> None:
    again = tmp_path / "again.zip"
    with zipfile.ZipFile(again, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if folders or path.is_file():
                archive.write(path, f"{top}{path.relative_to(folder).as_posix()}")
    with open_bundle(again) as bundle, open_bundle(folder) as plain:
        assert bundle.sha256 == plain.sha256
    assert foreign(again, "archive") == []


def test_what_lies_beside_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.zip"
    path.write_bytes((folder.parent / "mine.zip").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("beside.txt", "x")
    with pytest.raises(BundleError, match="holds no manifest.json"), open_bundle(path):
        pass
    assert foreign(path, "archive")


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("vit_tiny-x86-64-onnxruntime", "vit_tiny-x86-64-onnxruntime"),
        ("facebook/deit tiny", "facebook_deit_tiny"),
        ("../..", "_"),
        ("...", "bundle"),
        ("-rf", "rf"),
        ("名", "_"),
    ],
)
def test_the_folder_has_a_plain_name(name: str, top: str) -> None:
    assert top_folder(name) == top


def test_equal_folders_give_equal_zips(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.zip", "tiny")
    os.utime(folder / "manifest.json", (0, 0))
    pack(folder, tmp_path / "b.zip", "tiny")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
