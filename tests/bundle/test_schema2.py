"""A bundle of schema 2 and its flat, stored zip, as the edgevit before this schema wrote them: read and run as ever."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from edgevit.bundle.read import load_golden, open_bundle
from edgevit.devices import local
from edgevit.schema.manifest_v2 import ADDED
from edgevit.util.ownership import foreign
from edgevit.util.strict_json import to_data
from tests.bundles import includes

# The gated tiny Program of two blocks for x86-64-onnxruntime.
BUNDLE = Path(__file__).with_name("schema2") / "tiny.zip"


def test_its_zip_has_no_folder_and_is_ours() -> None:
    with zipfile.ZipFile(BUNDLE) as archive:
        assert "manifest.json" in archive.namelist()
    assert foreign(BUNDLE, "archive") == []


def test_it_says_what_it_said() -> None:
    with zipfile.ZipFile(BUNDLE) as archive:
        old = json.loads(archive.read("manifest.json"))
    with open_bundle(BUNDLE) as bundle:
        now = to_data(bundle.manifest)
        assert all(len(array) for case in bundle.manifest.golden for array in load_golden(bundle, case))
    assert old["schema"] == 2
    assert includes(now | {"schema": 2}, old)
    assert {key for key in now["target"] if key not in old["target"]} == set(ADDED["target"])
    assert now.keys() - old.keys() == set(ADDED[""])


def test_its_golden_outputs_are_reproduced() -> None:
    assert [result.held for result in local.verify(BUNDLE).golden] == [True, True, True]
