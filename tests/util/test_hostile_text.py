"""TOML, tables and lists made to hang, to fill the memory or to crash are one error of their kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.compress.training.recipe import load_recipe
from edgevit.errors import EdgevitError, ImagesError, TargetError, TrainingError
from edgevit.images.sources import list_images
from edgevit.schema.target import load_target
from edgevit.tasks.classes import read_classes
from edgevit.util import text
from edgevit.util.limits import SETTINGS_BYTES, TEXT_BYTES, TEXT_LINES
from edgevit.util.text import read_lines, read_toml
from tests.pictures import picture_bytes
from tests.tiny import tiny_spec

pytestmark = pytest.mark.usefixtures("little_memory")
PICTURE = picture_bytes()


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path, to: str) -> Path:
    path.symlink_to(to)
    return path


ROWS = "file,label\n"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (ROWS + "a.png,1000000000000000000\n", "got label '1000000000000000000', allowed"),
        (ROWS + f"a.png,{'9' * 5000}\n", "got label '9{40}', allowed"),
        (ROWS + "a.png,-1\n", "got label '-1'"),
        (ROWS + "a.png,1\na.png,2\n", "line 3: 'a.png' was told another label before"),
        ("file,label,label\na.png,1,2\n", "a column twice"),
        (",".join(["file", "label", *map(str, range(500_000))]) + "\na.png,1\n" * 9, "500002 columns, allowed: 100"),
        (ROWS + "x" * 200_000 + ",1\n", "field larger than"),
        ("file,label\ra.png,1\r\n\"", "cannot be read|got label"),
    ],
)  # fmt: skip
def test_a_hostile_table_of_labels_is_one_error(table: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(ImagesError, match=said):
        list_images(tmp_path)


TOML: list[tuple[str | bytes, str]] = [
    ("a" + ".a" * 200_000 + " = 1", "allowed for a target|parts of a key are nested 200000 deep"),
    ("a" + ".a" * 60_000 + " = 1", "parts of a key are nested 60000 deep, allowed: 64 levels"),
    ("[a" + ' . "b"' * 20_000 + "]", "parts of a key are nested 20000 deep"),
    ("a = " + "[" * 100_000, "nested 100000 deep, allowed: 64 levels"),
    ("a = " + "{a = " * 40_000, "nested 40000 deep"),
    ("a = " + "1" * 5000, "4300"),
    ("a = -" + "1" * 4000, "bits, allowed: 64 bits with the sign"),
    ("a = 0x" + "f" * 200_000, "integer of 800000 bits"),
    ("a = [[{b = 9223372036854775808}]]", "integer of 64 bits"),
    ("threads = 1979-05-27T07:32:00Z", "expected int"),
    ("threads = 1e400", "expected int"),
    ('a = "\\ud800"', "TOML"),
    (b'a = "\xed\xa0\x80"', "no UTF-8"),
    (b"\xff\xfe", "UTF-16"),
    ("a = 1\na = 2", "TOML"),
    ("a = '''" + "[" * 100_000, "TOML"),
    ('"""' * 50_000, "TOML"),
    ('a = "\\', "TOML"),
    (b"#" * (SETTINGS_BYTES.value + 1), "allowed for a target or a recipe"),
]


@pytest.mark.parametrize(("content", "said"), TOML, ids=range(len(TOML)))
def test_a_hostile_toml_file_is_one_error_of_its_kind(content: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TargetError, match=said):
        load_target(path)
    with pytest.raises(TrainingError, match=f"{said}|unknown key 'threads'"):
        load_recipe(path)
    with pytest.raises(ImagesError, match=f"{said}|unknown key|missing key|allowed|cannot be read as TOML"):
        list_images(path)


READERS = [load_target, load_recipe, list_images, read_lines, lambda path: read_classes(str(path), tiny_spec())]


@pytest.mark.parametrize("read", READERS)
def test_pipes_and_devices_are_no_text(read: Callable[[Path], object], tmp_path: Path) -> None:
    for path in (pipe(tmp_path / "pipe.toml"), link(tmp_path / "zero.toml", "/dev/zero")):
        with pytest.raises((EdgevitError, ValueError), match=r"it is a (pipe|device)|--classes: got '/"):
            read(path)


def test_strings_and_comments_may_hold_anything(tmp_path: Path) -> None:
    odd = "[.{" * 100
    content = f"""# {odd} "
a = "{odd} \\" # '''"
b = '{odd} "'
c = \"\"\"{odd} "" \\\"\"\" {odd}
\"\"\"\"\"
d = '''{odd} '' "
{odd}''''
"e.{odd}" = 1.5
"""
    (tmp_path / "a.toml").write_text(content)
    assert read_toml(tmp_path / "a.toml", SETTINGS_BYTES)["c"].endswith('\n""')
    assert not text.TOML_SIGNS.findall(text.TOML_TEXT.sub("s", content).replace("=", ""))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n" * (TEXT_LINES.value + 1), "1000001 lines, allowed: 1000000 lines"),
        (b"a" * 70_000, "line 1 has 70000 characters, allowed: 65536 characters"),
        (b"a\n" * (TEXT_BYTES.value // 2 + 1), "allowed for a text file"),
    ],
)
def test_labels_have_lines_of_a_length_that_people_read(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_lines(tmp_path / "labels.txt")


def test_classes_on_the_command_line_may_be_many_and_are_short(tmp_path: Path) -> None:
    spec = tiny_spec(classes=200)
    every = ",".join(map(str, range(200)))  # longer than a file's name can be
    assert read_classes(every, spec) == tuple(range(200))
    with pytest.raises(ImagesError, match="--classes: got '9{80}'; allowed"):
        read_classes("9" * 5000, spec)
    (tmp_path / "classes.txt").write_text("7\n" * 100_000)
    with pytest.raises(ImagesError, match=r"got \[7\] twice"):
        read_classes(str(tmp_path / "classes.txt"), spec)
