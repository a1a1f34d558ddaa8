from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgevit.bundle.read import open_bundle
from edgevit.bundle.write import write_bundle
from edgevit.errors import OutputError
from edgevit.program.spec import OriginalSpec
from edgevit.schema.target import load_target
from tests.bundles import sample_bundle, sample_manifest
from tests.tiny import tiny_program

FLOAT = dataclasses.replace(load_target("rpi4-onnxruntime"), int8=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equal_inputs_give_equal_bytes_wherever_they_are_written(tmp_path: Path) -> None:
    first = sample_bundle(tmp_path / "a" / "one", labels=["cat", "dog"], files={"report.html": "<p>"})
    second = sample_bundle(tmp_path / "b" / "two", labels=["cat", "dog"], files={"report.html": "<p>"})
    assert contents(first) == contents(second)
    assert (tmp_path / "a" / "one.zip").read_bytes() == (tmp_path / "b" / "two.zip").read_bytes()


def test_zip_and_folder_hold_the_same(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "bundle")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        members = archive.infolist()
        assert {m.filename: archive.read(m) for m in members} == {f"tiny/{k}": v for k, v in contents(folder).items()}
        assert {m.date_time for m in members} == {(1980, 1, 1, 0, 0, 0)}
        assert {m.compress_type for m in members} == {zipfile.ZIP_DEFLATED}


def test_no_licence_is_put_on_weights_that_state_none(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "bundle", changes={"origin": {"source": "timm"}})
    said = (folder / "licences/weights.txt").read_text()
    assert "license: not stated" in said and "No licence is stated" in said and "Apache" not in said


def test_manifest_lists_every_file_and_names_no_local_path(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "bundle", files={"licences/weights.txt": "Apache-2.0"})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {f["path"] for f in manifest["files"]} | {"manifest.json"} == set(contents(folder))
    assert {"golden/real.image.npy", "runner/run.py", "licences/edgevit.txt"} < set(contents(folder))
    assert not [name for name, raw in contents(folder).items() if str(tmp_path).encode() in raw]


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "bundle")
    before = contents(folder)
    with pytest.raises(OutputError, match="exists already.*--force"):
        sample_bundle(folder, depth=1)
    assert contents(folder) == before
    sample_bundle(folder, depth=1, force=True)
    with open_bundle(folder) as bundle:
        assert len(bundle.manifest.branches) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle.zip"]


def test_a_zip_alone_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_text("somebody's")
    with pytest.raises(OutputError, match=r"bundle\.zip exists already"):
        sample_bundle(tmp_path / "bundle")
    assert (tmp_path / "bundle.zip").read_text() == "somebody's"


def test_force_never_replaces_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("dear")
    with pytest.raises(OutputError, match="not a bundle"):
        sample_bundle(tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "me.jpg").read_text() == "dear"


@pytest.mark.parametrize("name", ["../evil", "/abs", "a//b", "a/../b", "a b", "", "a/", ".hidden", "dot."])
def test_a_path_that_is_not_plain_is_refused_and_nothing_stays(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be a path inside a bundle"):
        sample_bundle(tmp_path / "bundle", files={name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_not_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"model files that were not given: model/model\.onnx"):
        write_bundle(tmp_path / "bundle", sample_manifest(tiny_program()), {}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "changes", "done"),
    [
        ({"gated": False}, {}, "edgevit changed the weights: quantized to int8; compiled"),
        ({}, {}, "edgevit changed the weights: gated; quantized to int8; compiled"),
        (
            {"gated": False, "removed": ("b01_ffn",)},
            {"target": FLOAT},
            "changed the weights: pruned; compiled",
        ),
        ({"gated": False}, {"target": FLOAT}, "edgevit left the weights as they are, in float; compiled"),
        (
            {},
            {"original": OriginalSpec(name="x", weights_sha256="", macs=1, parameters=1, steps=("pruned by 10%",))},
            "edgevit changed the weights: pruned by 10%; quantized to int8; compiled",
        ),
    ],
)
def test_the_licence_says_what_was_done_to_the_weights_and_nothing_else(
    tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], done: str
) -> None:
    folder = sample_bundle(tmp_path / "bundle", changes=changes, **options)
    assert done in (folder / "licences" / "weights.txt").read_text()
