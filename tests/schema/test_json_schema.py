"""The published JSON Schema is that of the dataclasses, and says of a manifest what the strict reader says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from edgevit.schema import json_schema
from edgevit.schema.claims import FIGURES
from edgevit.schema.manifest import Manifest
from edgevit.util.strict_json import to_data
from tests.schema.test_manifest_v1 import today

PUBLISHED = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample."""

    name: Literal["a", "b"]
    pair: tuple[int, str]
    rows: tuple[float, ...] = ()
    more: dict[str, bool | None] = dataclasses.field(default_factory=dict)
    anything: Any = None


def test_what_is_published_is_current(tmp_path: Path) -> None:
    json_schema.main(tmp_path / "schema.json")
    assert (tmp_path / "schema.json").read_text() == PUBLISHED.read_text(), (
        "run: python -m edgevit.schema.json_schema docs/manifest.schema.json"
    )


def test_every_kind_of_field_has_its_schema() -> None:
    made = json_schema.json_schema(Sample)
    assert made["$ref"] == "#/$defs/Sample"
    assert made["$defs"]["Sample"] == {
        "description": "A sample.",
        "type": "object",
        "properties": {
            "name": {"enum": ["a", "b"]},
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
            "rows": {"type": "array", "items": {"type": "number"}},
            "more": {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            },
            "anything": {},
        },
        "required": ["name", "pair"],
        "additionalProperties": False,
    }
    odd = dataclasses.make_dataclass("Odd", [("when", complex)])
    with pytest.raises(TypeError, match="no JSON Schema for <class 'complex'>"):
        json_schema.json_schema(odd)


def test_figures_are_those_of_the_claims_name() -> None:
    chosen = json_schema.json_schema(Manifest)["$defs"]["Claim"]["allOf"]
    assert {rule["if"]["properties"]["name"]["const"]: rule["then"]["properties"]["figures"] for rule in chosen} == {
        name: {"anyOf": [{"$ref": f"#/$defs/{kind.__name__}"}, {"type": "null"}]} for name, kind in FIGURES.items()
    }


def test_a_manifest_has_every_required_key_and_no_other() -> None:
    """Walk a written manifest along the schema: a stranger's validator would find the same keys."""
    schema = json.loads(PUBLISHED.read_text())

    def walk(value: Any, rule: dict[str, Any]) -> None:
        rule = schema["$defs"][rule["$ref"].removeprefix("#/$defs/")] if "$ref" in rule else rule
        if isinstance(value, dict) and "properties" in rule:
            assert set(rule["required"]) <= set(value) <= set(rule["properties"])
            for key, inner in value.items():
                walk(inner, rule["properties"][key])
        elif isinstance(value, list) and "items" in rule:
            for inner in value:
                walk(inner, rule["items"])

    walk(to_data(today()), schema)
