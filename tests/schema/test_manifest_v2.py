"""Manifests of schema 2 say today what they said, and hold nothing that only today's schema has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import BundleError
from edgevit.schema.manifest import Manifest
from edgevit.schema.manifest_file import parse_manifest
from edgevit.schema.manifest_v2 import ADDED
from tests.schema.test_manifest_v1 import before_schema_3, today


def old() -> dict[str, Any]:
    return {**before_schema_3(), "schema": 2, "sha256": ""}


def parsed(data: Any) -> Manifest:
    return parse_manifest(json.dumps(data).encode(), Path("tiny"))


def test_it_is_read_as_today() -> None:
    assert parsed(old()) == today()


def test_budgets_and_points_are_none() -> None:
    manifest = parsed(old())
    assert manifest.points == () and manifest.target.ram_mb is None


@pytest.mark.parametrize(("table", "key"), [(table, key) for table, keys in ADDED.items() for key in keys])
def test_what_schema_3_added_is_a_fault(table: str, key: str) -> None:
    data = old()
    if table == "golden":
        data["golden"] = [{"path": "real", "effort": 0.0, "image": "i", "logits": "l", "gates": "g"}]
    inside = data[table] if table else data
    (inside[0] if isinstance(inside, list) else inside)[key] = None
    with pytest.raises(BundleError, match=f"'{key}' is not a key of schema 2"):
        parsed(data)


def test_a_table_that_is_none_is_left_to_the_reader() -> None:
    with pytest.raises(BundleError, match="manifest.target: got int"):
        parsed({**old(), "target": 3})
