"""Whatever bytes a file holds, readers read it or give one error of their kind."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevit.compress.training.recipe import load_recipe
from edgevit.errors import ImagesError, TargetError, TrainingError
from edgevit.images.image_set import UnreadableImage, decode, load_images
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped
from edgevit.util.text import decode_text, read_lines
from tests.pictures import SPEC, picture_bytes

pytestmark = pytest.mark.usefixtures("little_memory")
TARGET = (shipped("targets") / "x86-64-onnxruntime.toml").read_text()
PICTURE = picture_bytes()
ENTRY = '[[image]]\nfile = "{}"\nsha256 = "x"\nsource = "s"\nlicence = "l"\n'
LIST = 'name = "n"\ndescription = "d"\nlicence = "l"\n'


def mutated(seed: bytes) -> st.SearchStrategy[bytes]:
    """A file with some pieces replaced, left out or put twice."""
    edits = st.lists(st.tuples(st.integers(0, len(seed)), st.integers(0, 40), st.binary(max_size=12)), max_size=6)

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        raw = seed
        for at, cut, put in changes:
            raw = raw[:at] + put + raw[at + cut :]
        return raw

    return edits.map(apply)


def archive_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cat/a.png", PICTURE)
            archive.writestr("labels.csv", "file,label\ncat/a.png,1\n")
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("cat/" + "a" * 120 + ".png")
            info.size = len(PICTURE)
            tar.addfile(info, io.BytesIO(PICTURE))
    else:
        data = np.frombuffer(PICTURE, dtype=np.uint8)
        np.savez(buffer, jpeg=data, offset=np.array([0, len(data)]), label=np.array([1]), classes=np.array(["a", "b"]))
    return buffer.getvalue()


def image_bytes(kind: str) -> bytes:
    return picture_bytes(kind=kind)


RAW = st.binary(max_size=300)
LINES_OF = st.text(st.sampled_from("a.\"'[]{}=,#\n\\ 01-_\u00e9"), max_size=200).map(str.encode)
NAMED = {
    "a.toml": RAW | LINES_OF | mutated(TARGET.encode()) | mutated((LIST + ENTRY.format("a.png")).encode()),
    "a.zip": RAW | mutated(archive_bytes("zip")),
    "a.tar": RAW | mutated(archive_bytes("tar")),
    "a.npz": RAW | mutated(archive_bytes("npz")),
}
ANY = st.one_of(*(st.tuples(st.just(name), raw) for name, raw in NAMED.items()))
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(ANY)
def test_any_file_is_read_or_one_error(tmp_path: Path, named: tuple[str, bytes]) -> None:
    path = tmp_path / named[0]
    path.write_bytes(named[1])
    try:
        load_images(path, SPEC)
    except ImagesError as error:
        assert str(path) in str(error)
    if path.suffix != ".toml":
        return
    for read, kind in ((load_target, TargetError), (load_recipe, TrainingError)):
        try:
            read(path)
        except kind as error:
            assert str(path) in str(error)


@FUZZ
@given(st.one_of(*(mutated(image_bytes(kind)) for kind in ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF"))))
def test_any_bytes_are_an_image_or_unreadable(raw: bytes) -> None:
    try:
        assert decode(raw).mode == "RGB"
    except UnreadableImage as error:
        assert str(error)


@FUZZ
@given(RAW | LINES_OF)
def test_any_bytes_are_lines_or_one_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(raw)
    try:
        lines = read_lines(tmp_path / "labels.txt")
    except ValueError:
        return
    assert all(line == line.strip() and line for line in lines)
    assert decode_text(raw).strip().startswith(lines[0] if lines else "")
