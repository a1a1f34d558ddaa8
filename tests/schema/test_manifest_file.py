"""A manifest's target and settings are of their types, and say nothing that contradicts the rest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import BundleError
from edgevit.schema.manifest import Setting
from edgevit.schema.manifest_file import parse_manifest
from edgevit.util.strict_json import dumps, to_data
from tests.schema.test_manifest_v1 import today


def test_what_is_written_is_read_as_it_was() -> None:
    settings: dict[str, Setting] = {"NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    manifest = dataclasses.replace(today(), runtime_settings=settings)
    read = parse_manifest(dumps(manifest).encode(), Path("tiny"))
    assert read == manifest
    assert [type(value) for value in read.runtime_settings.values()] == [int, str, bool]


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("target", {"weight_bits": 9}, "manifest.target.weight_bits: got 9, allowed: 7, 8"),
        ("target", {"surprise": 1}, "manifest.target: unknown key 'surprise'"),
        ("target", {"backend": "openvino"}, "target: its backend is 'openvino', the bundle's is 'onnxruntime'"),
        ("target", {"threads": 0}, "target: threads is 0, allowed: 1 to 1024"),
        ("recipe", {"prune": "all"}, "manifest.recipe.prune: got 'all', expected float"),
        ("runtime_settings", {"a": 0.5}, "runtime_settings.a: got 0.5, expected str or int or bool"),
    ],
)
def test_a_wrong_target_recipe_or_setting_is_one_error(part: str, change: dict[str, Any], said: str) -> None:
    data = to_data(today())
    data[part] |= change
    with pytest.raises(BundleError, match=said):
        parse_manifest(json.dumps(data).encode(), Path("tiny"))
