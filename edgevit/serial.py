"""Frozen dataclasses to and from JSON-like data, strictly: unknown keys, missing keys and wrong types are faults.

Used for program.json, manifests, measurements and target files. All faults are collected, none is guessed away.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgevit import atomic

T = TypeVar("T")


def to_data(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into dicts, lists and scalars that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(v) for v in value]
    return value


def from_data(cls: type[T], data: Any, faults: list[str], where: str = "") -> T | None:
    """Build `cls` from `data`; append every fault found to `faults` and return None if there was one."""
    before = len(faults)
    value = _read(cls, data, faults, where or cls.__name__)
    return value if len(faults) == before else None


def dumps(value: Any) -> str:
    """Stable JSON text: two spaces, keys in the order of their definition, a newline at the end."""
    return json.dumps(to_data(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomic(path: Path, content: bytes | str, *, sync: bool = True, replace: bool = True) -> None:
    """Write a file so that a reader never meets half of it; see `atomic.write_file`."""
    atomic.write_file(path, content.encode() if isinstance(content, str) else content, sync=sync, replace=replace)


def seal(value: Any) -> str:
    """JSON text of a dataclass whose field `sha256`, empty so far, is filled with the digest of the text without it.

    It tells damage, not who wrote it: anybody can seal what he changed.
    """
    text = dumps(value)
    return text.replace('"sha256": ""', f'"sha256": "{hashlib.sha256(text.encode()).hexdigest()}"', 1)


def seal_holds(raw: bytes, digest: str) -> bool:
    """Whether JSON text is what was sealed with this digest."""
    return hashlib.sha256(raw.replace(digest.encode(), b"", 1)).hexdigest() == digest


def _read(kind: Any, data: Any, faults: list[str], where: str) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        if data is None and len(inner) < len(typing.get_args(kind)):
            return None
        return _read_union(inner, data, faults, where)
    if origin is typing.Literal:
        if data not in typing.get_args(kind):
            faults.append(f"{where}: got {data!r}, allowed: {', '.join(map(repr, typing.get_args(kind)))}")
        return data
    if origin in (tuple, list):
        return _read_sequence(kind, data, faults, where)
    if origin is dict:
        if not isinstance(data, Mapping):
            faults.append(f"{where}: got {type(data).__name__}, expected a table")
            return {}
        value_kind = typing.get_args(kind)[1]
        return {str(k): _read(value_kind, v, faults, f"{where}.{k}") for k, v in data.items()}
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, faults, where)
    return _read_scalar(kind, data, faults, where)


def _read_union(kinds: list[Any], data: Any, faults: list[str], where: str) -> Any:
    tried: list[str] = []
    for kind in kinds:
        own: list[str] = []
        value = _read(kind, data, own, where)
        if not own:
            return value
        tried = own
    faults.extend(tried)
    return None


def _read_scalar(kind: Any, data: Any, faults: list[str], where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    wrong = not isinstance(data, kind) or (kind is not bool and isinstance(data, bool))
    if wrong or (kind is float and not math.isfinite(data)):
        faults.append(f"{where}: got {data!r}, expected {kind.__name__}")
    return data


def _read_sequence(kind: Any, data: Any, faults: list[str], where: str) -> Any:
    if not isinstance(data, list | tuple):
        faults.append(f"{where}: got {data!r}, expected a list")
        return ()
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(arguments) != len(data):
            faults.append(f"{where}: got {len(data)} values, expected {len(arguments)}")
            return ()
        return tuple(_read(a, v, faults, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, data, strict=True)))
    values = [_read(arguments[0], v, faults, f"{where}[{i}]") for i, v in enumerate(data)]
    return tuple(values) if typing.get_origin(kind) is tuple else values


def _read_dataclass(cls: Any, data: Any, faults: list[str], where: str) -> Any:
    if not isinstance(data, Mapping):
        faults.append(f"{where}: got {type(data).__name__}, expected a table")
        return None
    kinds = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in fields:
            faults.append(f"{where}: unknown key {key!r}, allowed: {', '.join(fields)}")
    values: dict[str, Any] = {}
    before = len(faults)
    for name, item in fields.items():
        if name in data:
            values[name] = _read(kinds[name], data[name], faults, f"{where}.{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.append(f"{where}: missing key {name!r}")
    return cls(**values) if len(faults) == before else None
