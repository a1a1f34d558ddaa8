"""What earlier runs left: read as it was written, and one clear error where it is damaged or something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import adaptivity, arm, compression_curve, estimate_error, merge_repair, methods, token_times, tokens
from benchmarks.compression_report import Book, Row
from benchmarks.kept import read_array, read_program, read_rows, read_table
from edgevit.program.program import save_program
from edgevit.util.strict_json import dumps
from tests.tiny import tiny_program

REFERENCE = Path("reports/reference")
ROW = Row(
    model="vit_tiny",
    method="dense",
    prune=0.0,
    gate=1.0,
    macs=1.0,
    top1=0.7,
    standard_error=0.01,
    agreement=1.0,
    divergence=0.0,
    open_branches=24.0,
    seconds=1.0,
)
WORDS = ("--model", "vit_tiny", "--minutes", "0", "--resume")
SETTINGS: dict[str, object] = {
    "command": "python benchmarks/compression_curve.py --model vit_tiny --seeds 1",
    "images": 1000,
    "calibration": 300,
    "seeds": 1,
}


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("[{", "is damaged"),
        ("", "is damaged"),
        ("[]", "of another version: table: got list, expected a table"),
        ("{}", "with other settings"),
        (dumps({"settings": SETTINGS}), "of another version: rows: got None, expected a list"),
        (dumps({"settings": SETTINGS, "rows": [{"model": "vit_tiny"}]}), "rows[0]: missing key 'method'"),
        (dumps({"settings": SETTINGS, "rows": [asdict(ROW) | {"method": "luck"}]}), "unknown methods, luck"),
    ],
)
def test_a_curve_that_cannot_go_on_is_one_clear_error(
    left: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVIT_DATA", str(tmp_path))
    (tmp_path / "compression.json").write_text(left)
    done = CliRunner().invoke(compression_curve.main, [*WORDS, "-o", str(tmp_path)])
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1
    assert told in done.output and done.output.rstrip().endswith("run without --resume")
    assert (tmp_path / "compression.json").read_text() == left


def test_a_curve_goes_on_with_what_it_wrote(tmp_path: Path) -> None:
    assert Book(tmp_path / "new.json", SETTINGS, True, None).rows == []
    Book(tmp_path / "compression.json", SETTINGS, False, None).add(ROW)
    assert Book(tmp_path / "compression.json", SETTINGS, True, None).rows == [ROW]


@pytest.mark.parametrize("option", ["--compression", "--tokens", "--work"])
def test_a_file_in_the_place_of_a_folder_is_wrong_usage(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(methods.main, [option, str(tmp_path / "file")])
    assert done.exit_code == 2 and "is a file" in done.output


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tokens", lambda path: read_rows(path, tokens.Row, "")),
        ("token-times", lambda path: read_rows(path, token_times.Row, "")),
        ("merge-repair", lambda path: read_rows(path, merge_repair.Row, "")),
        ("adaptivity", lambda path: adaptivity.kept(path.parent)),
        ("arm", arm.kept_rows),
        ("arm-error", estimate_error.read_errors),
    ],
)
def test_reports_are_read_and_what_is_none_is_one_clear_error(
    name: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    assert read(REFERENCE / f"{name}.json")
    path = tmp_path / f"{name}.json"
    for left, told in (("[{", "is damaged"), ('[{"seed": 1}]', "of another version"), ("5", "of another version")):
        path.write_text(left)
        with pytest.raises(click.ClickException, match=told):
            read(path)


def test_what_lies_in_a_work_folder_is_checked_too(tmp_path: Path) -> None:
    kept = tmp_path / "kept.npy"
    np.save(kept, np.zeros((3, 4)))
    assert read_array(kept, (3, 4)).shape == (3, 4)
    with pytest.raises(click.ClickException, match=r"got \(3, 4\), expected \(3, 5\); delete it"):
        read_array(kept, (3, 5))
    for damaged in (b"", kept.read_bytes()[:-1], b"PK\x03\x04", b"text"):
        kept.write_bytes(damaged)
        with pytest.raises(click.ClickException, match="is damaged"):
            read_array(kept, (3, 4))
    save_program(tiny_program(), tmp_path / "program")
    assert read_program(tmp_path / "program").spec == tiny_program().spec
    (tmp_path / "program/program.json").write_text("{")
    with pytest.raises(click.ClickException, match="and it is made again"):
        read_program(tmp_path / "program")
    assert read_table(tmp_path / "none.json", "") == {}
