"""The bill of materials is valid CycloneDX 1.6 by its own schema, complete, and the same every time."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgevit.backends import MODULES, desk
from edgevit.bundle.guide import Guide
from edgevit.bundle.sbom import SBOM, sbom
from edgevit.schema.claims import Claim
from edgevit.schema.manifest import BundleFile, Manifest
from tests.bundles import sample_bundle, sample_manifest
from tests.tiny import tiny_program

FILES = ("labels.json", "licences/edgevit.txt", "model/model.onnx", "runner/native/runner", "runner/run.py")


def manifest(**changes: Any) -> Manifest:
    files = tuple(BundleFile(path=path, bytes=5, sha256=f"{index:064x}") for index, path in enumerate(FILES))
    return dataclasses.replace(sample_manifest(tiny_program(gated=True)), files=files, **changes)


def bill(made: Manifest, guide: Guide | None = None) -> dict[str, Any]:
    text = sbom(made, guide or Guide())
    faults = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert faults is None, faults
    data: dict[str, Any] = json.loads(text)
    return data


def licences(data: dict[str, Any]) -> dict[str, list[str]]:
    return {
        component["name"]: [
            stated.get("expression") or stated["license"].get("id") or f"named {stated['license']['name']}"
            for stated in component.get("licenses", ())
        ]
        for component in (data["metadata"]["component"], *data["components"])
    }


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_lists_every_file_of_a_bundle_with_its_hash(runtime: str, tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "tiny", runtime=runtime, labels=["a"] * 10)
    data = json.loads((folder / SBOM).read_text())
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(data)) is None
    files = {file["path"]: file["sha256"] for file in json.loads((folder / "manifest.json").read_text())["files"]}
    listed = {c["name"]: c["hashes"][0]["content"] for c in data["components"] if c["type"] == "file"}
    assert files.pop(SBOM) and listed == files and "README.md" in listed
    assert {c["name"] for c in data["components"] if c["type"] == "library"} == {runtime, "numpy", "pillow"}


def test_it_is_a_bill_of_a_model() -> None:
    data = bill(manifest())
    model = data["metadata"]["component"]
    assert data["specVersion"] == "1.6" and model["type"] == "machine-learning-model"
    card = model["modelCard"]
    assert card["modelParameters"]["task"] == "image classification"
    (top1,) = [m for m in card["quantitativeAnalysis"]["performanceMetrics"] if m["slice"] == "bundle, 1000 images"][:1]
    assert top1["type"] == "top1" and top1["value"] == "0.744"
    assert data["metadata"]["tools"]["components"][0]["name"] == "edgevit"


def test_it_is_the_same_every_time_and_another_for_other_files() -> None:
    assert sbom(manifest(), Guide()) == sbom(manifest(), Guide())
    first, other = bill(manifest()), bill(dataclasses.replace(manifest(), files=manifest().files[1:]))
    assert first["serialNumber"] != other["serialNumber"] and "timestamp" not in first["metadata"]


def test_every_file_has_its_own_licence() -> None:
    data = bill(manifest(origin={"license": "cc-by-4.0"}), desk("tvm").guide())
    found = licences(data)
    assert found["tiny"] == found["model/model.onnx"] == found["labels.json"] == ["CC-BY-4.0"]
    assert found["runner/run.py"] == ["Apache-2.0"] and found["licences/edgevit.txt"] == []
    assert found["runner/native/runner"] == ["Apache-2.0 AND MIT AND (GPL-3.0-or-later WITH GCC-exception-3.1)"]
    assert found["numpy"] == ["BSD-3-Clause"]


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({}, []),
        ({"licence": "apache-2.0"}, ["Apache-2.0"]),
        ({"license": "MIT OR Apache-2.0"}, ["MIT OR Apache-2.0"]),
        ({"license": "ask\x1b[31m me\n"}, ["named ask [31m me"]),
    ],
)
def test_a_licence_is_what_was_stated(stated: dict[str, str], found: list[str]) -> None:
    assert licences(bill(manifest(origin=stated)))["model/model.onnx"] == found


def test_what_others_wrote_stays_valid() -> None:
    odd = "\x1b[31m\u202e名\n" * 3
    claims = (Claim(name="skip", held=None, summary=odd),)
    data = bill(manifest(name=odd, origin={odd: odd, "license": odd}, claims=claims))
    assert "\x1b" not in json.dumps(data, ensure_ascii=False)
    assert data["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"]


@pytest.mark.parametrize("runtime", MODULES)
def test_every_runtime_states_licences_that_are_standard(runtime: str) -> None:
    guide = desk(runtime).guide()
    assert all(re.sub(r" AND | WITH |[-.()]", "", text).isalnum() for text in guide.licences.values())
    found = licences(bill(manifest(backend=runtime), guide))
    assert not [text for texts in found.values() for text in texts if text.startswith("named")]
