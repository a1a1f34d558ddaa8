"""JSON Schema of what edgevit writes, derived from its dataclasses, for readers in other languages.

python -m edgevit.schema.json_schema docs/manifest.schema.json
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any

from edgevit.schema.manifest import Manifest
from edgevit.util import strict_json

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass as `strict_json` writes and reads it.

    Every dataclass in it has its own entry in `$defs`, with its docstring; unknown keys are not allowed.

    Raises:
        TypeError: a field is of a type that `strict_json` does not write.
    """
    definitions: dict[str, Any] = {}
    top = _of(cls, definitions)
    return {"$schema": DIALECT, "title": cls.__name__, **top, "$defs": dict(sorted(definitions.items()))}


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(inner, definitions) for inner in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if origin is tuple and arguments[1:] != (...,):
        items = [_of(inner, definitions) for inner in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in (tuple, list):
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # its place, should it hold itself
            definitions[kind.__name__] = _table(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if kind not in SCALARS:
        raise TypeError(
            f"no JSON Schema for {kind!r}; allowed: dataclasses, scalars, Literal, tuple, list, dict, unions"
        )
    return SCALARS[kind]


def _table(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, fields = typing.get_type_hints(cls), [field for field in dataclasses.fields(cls) if field.init]
    missing = dataclasses.MISSING
    table: dict[str, Any] = {
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "type": "object",
        "properties": {field.name: _of(hints[field.name], definitions) for field in fields},
        "required": [f.name for f in fields if f.default is missing and f.default_factory is missing],
        "additionalProperties": False,
    }
    chosen = [
        {
            "if": {"properties": {key: {"const": value}}},
            "then": {"properties": {field.name: {"anyOf": [_of(kind, definitions), {"type": "null"}]}}},
        }
        for field in fields
        for key, kinds in [strict_json.choice(field)]
        for value, kind in kinds.items()
    ]
    return table | ({"allOf": chosen} if chosen else {})


def main(path: Path) -> None:
    """Write the JSON Schema of `manifest.json`."""
    strict_json.write_atomic(path, strict_json.dumps(json_schema(Manifest)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
