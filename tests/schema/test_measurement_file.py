from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgevit.errors import BundleError
from edgevit.schema.measurement_file import read_measurement, write_measurement
from tests.report.sample import measurement


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_measurement(measurement(), tmp_path / "m.json")
    assert read_measurement(tmp_path / "m.json") == measurement()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"load_ms": 80.0', '"load_ms": 1' + "0" * 400, "an integer of 401 digits"),
        ('"load_ms": 80.0', '"load_ms": 1e999', "no finite number"),
        ('"load_ms": 80.0', '"load_ms": NaN', "no finite number"),
        ('"load_ms": 80.0', '"load_ms": ' + "[" * 100_000, "nests too deep"),
        ('"load_ms": 80.0', '"load_ms": 80.0, "load_ms": 1.0', "there twice"),
        ('"bundle": "tiny"', r'"bundle": "\ud800"', "half a surrogate"),
        ('"branches": [', '"branches": [' + "{}," * 60_000, "more"),
        ('"schema": 1', '"schema": "' + "x" * 100_000 + '"', "this edgevit reads measurements of schema 1"),
    ],
)
def test_a_hostile_measurement_is_one_short_error(old: str, new: str, words: str, tmp_path: Path) -> None:
    write_measurement(measurement(), tmp_path / "m.json")
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert text.count(old)
    (tmp_path / "m.json").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BundleError, match=words) as caught:
        read_measurement(tmp_path / "m.json")
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_times_are_as_many_as_runs(clock: str, tmp_path: Path) -> None:
    write_measurement(measurement(), tmp_path / "m.json")
    data = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    data["paths"][0][clock]["samples_ms"].pop()
    (tmp_path / "m.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BundleError, match="these must be as many"):
        read_measurement(tmp_path / "m.json")


def test_a_pipe_a_device_and_a_list_are_no_measurement(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "list").write_text(json.dumps([1]), encoding="utf-8")
    for name, words in (("pipe", "it is a pipe"), ("zero", "it is a device"), ("list", "has schema None")):
        with pytest.raises(BundleError, match=words):
            read_measurement(tmp_path / name)
