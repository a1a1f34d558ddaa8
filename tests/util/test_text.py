"""Text that people write comes with marks, line ends and encodings of every editor."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.compress.training.recipe import load_recipe
from edgevit.errors import ImagesError, TargetError, TrainingError
from edgevit.images.sources import list_images
from edgevit.schema.target import load_target
from edgevit.tasks.classes import read_classes
from edgevit.util.resources import shipped
from edgevit.util.text import read_lines, read_text
from tests.pictures import class_folders
from tests.tiny import tiny_spec

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}".encode()


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("tails", [0, 1, 3])
def test_marks_line_ends_and_empty_lines_at_the_end_are_no_part_of_the_lines(
    mark: bytes, end: str, tails: int, tmp_path: Path
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(mark + (end.join(["tête", "chain saw "]) + tails * end).encode())
    assert read_lines(path) == ("tête", "chain saw")
    assert read_text(path).startswith("tête\nchain saw")


def test_only_line_ends_separate_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\N{LINE SEPARATOR}b\nc\fd\n", encoding="utf-8")
    assert read_lines(tmp_path / "names.txt") == ("a\N{LINE SEPARATOR}b", "c\fd")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_has_no_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    assert read_lines(tmp_path / "names.txt") == ()


@pytest.mark.parametrize("text", ["a\n\nb\n", "\na\n"])
def test_an_empty_line_between_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=r"line [12] is empty"):
        read_lines(tmp_path / "names.txt")


ODD = [
    ("tête".encode("latin-1"), r"byte 1 \(0xea\) is no UTF-8, perhaps Latin-1"),
    ("tête".encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
    ("tête".encode("utf-32"), "it is UTF-32 text; save it as UTF-8"),
    ("names".encode("utf-16-le"), "NUL characters"),
]


@pytest.mark.parametrize(("raw", "said"), ODD)
def test_other_encodings_are_refused_wherever_text_is_read(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(raw)
    for error, reads in (
        (ImagesError, lambda: list_images(path)),
        (ImagesError, lambda: read_classes(str(path), tiny_spec())),
        (TargetError, lambda: load_target(str(path))),
        (TrainingError, lambda: load_recipe(path)),
    ):
        with pytest.raises(error, match=said):
            reads()
    folder = class_folders(tmp_path / "set")
    (folder / "labels.csv").write_bytes(raw)
    with pytest.raises(ImagesError, match=said):
        list_images(folder)


def test_a_mark_is_accepted_wherever_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(MARK + b"3\r\n0\r\n")
    assert read_classes(str(tmp_path / "classes.txt"), tiny_spec()) == (3, 0)
    target = tmp_path / "x86-64-onnxruntime.toml"
    target.write_bytes(MARK + (shipped("targets") / target.name).read_bytes())
    assert load_target(str(target)) == load_target("x86-64-onnxruntime")
    (tmp_path / "recipe.toml").write_bytes(MARK + b"batch = 17\r\n")
    assert load_recipe(tmp_path / "recipe.toml").batch == 17
    folder = class_folders(tmp_path / "set")
    (folder / "labels.csv").write_bytes(MARK + b"file,label,name\r\ncat/0.png,7,gnu\r\n")
    assert {(e.label, e.class_name) for e in list_images(folder)} == {(7, "gnu"), (None, "")}
    empty = 'name = "mine"\ndescription = "none"\nlicence = "CC0-1.0"\nimage = []\n'
    (tmp_path / "set.toml").write_bytes(MARK + empty.encode())
    with pytest.raises(ImagesError, match="at least one"):
        list_images(tmp_path / "set.toml")
