"""Frozen dataclasses to and from JSON-like data, strictly: unknown keys, missing keys and wrong types are faults.

Used for program.json, manifests, measurements and target files. All faults are collected, none is guessed away; of
very many the first are enough. `parse` reads JSON that somebody else wrote: within `limits`, and each key once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgevit.util import atomic
from edgevit.util.limits import (
    DOCUMENT_BYTES,
    DOCUMENT_DEPTH,
    DOCUMENT_VALUES,
    INTEGER_BITS,
    LimitError,
    read_regular,
)

T = TypeVar("T")
_LONG_NUMBER = re.compile(rb"\d{19}|\d[eE]\+?\d{3}")  # an integer beyond 64 bits, or a float beyond 1e308, has these
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs: bytes of a file's name that are no UTF-8
_ENOUGH_FAULTS = 100
_SHOWN_CHARACTERS = 80
_CHOSEN_BY = "chosen by"


def chosen_by(key: str, kinds: Mapping[Any, type]) -> dict[str, Any]:
    """Return metadata for a dataclass's field whose type `key`, another key of the same table, chooses from `kinds`."""
    return {_CHOSEN_BY: (key, kinds)}


def choice(item: dataclasses.Field[Any]) -> tuple[str, Mapping[Any, type]]:
    """Return the key that chooses the type of a field and the types by its values; no types where none was declared."""
    key, kinds = item.metadata.get(_CHOSEN_BY, ("", {}))
    return key, kinds


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


def read_json(path: Path) -> Any:
    """Read a JSON file; see `parse`.

    Raises:
        ValueError: no regular file, beyond a limit, or not the JSON that `parse` reads.
        OSError: missing, or not to be read.
    """
    return parse(read_regular(path, DOCUMENT_BYTES))


def parse(raw: bytes | str) -> Any:
    """Return JSON in UTF-8 as lists, tables and scalars, more strictly than the standard library reads it.

    Raises:
        ValueError: not JSON in UTF-8; beyond the limits on size, depth, count and integers; NaN or infinite numbers,
            also as 1e999; the same key twice in a table; or text with half a surrogate pair.
    """
    raw = raw.encode() if isinstance(raw, str) else raw
    if len(raw) > DOCUMENT_BYTES.value:
        raise LimitError(f"it has {len(raw)} bytes, allowed for {DOCUMENT_BYTES.said}")
    # Counted before parsing: every value but the first follows one of these. Those within text count too.
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > DOCUMENT_VALUES.value:
        raise LimitError(f"it has {values} values or more, allowed for {DOCUMENT_VALUES.said}")
    # A call for every number takes most of the time: only where some text, perhaps no number, has so many digits.
    long = _LONG_NUMBER.search(raw) is not None
    integer, number = (_integer, _number) if long else (None, None)
    try:
        data = json.loads(
            raw.decode(), object_pairs_hook=_table, parse_constant=_number, parse_int=integer, parse_float=number
        )
    except RecursionError:
        raise LimitError(f"it nests too deep, allowed for {DOCUMENT_DEPTH.said}") from None
    _check_nesting(data)
    if b"\\u" in raw:
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds text with half a surrogate pair, which is no Unicode") from None
    return data


def _check_nesting(data: Any) -> None:
    level, depth = [data], 0
    while level := [v for v in level if isinstance(v, list | dict)]:
        depth += 1
        if depth > DOCUMENT_DEPTH.value:
            raise LimitError(f"it nests too deep, allowed for {DOCUMENT_DEPTH.said}")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is there twice in one table")
    return table


def _integer(digits: str) -> int:
    # Most integers have few digits; thousands of them would take long to convert.
    if len(digits) > 20 or not _fits(int(digits)):
        raise LimitError(f"it holds an integer of {len(digits.lstrip('-'))} digits, allowed: {INTEGER_BITS}")
    return int(digits)


def _fits(value: int) -> bool:
    return value.bit_length() < INTEGER_BITS.value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {shown(text)}, which is no finite number")
    return value


def shown(value: Any) -> str:
    """Return a value of any kind as an error message shows it: its start, without control characters."""
    if isinstance(value, int) and not isinstance(value, bool) and not _fits(value):
        return f"an integer of {value.bit_length()} bits"  # its digits take long, or are refused, to convert
    if isinstance(value, str):
        text = ascii(value[: _SHOWN_CHARACTERS + 1]) if not value.isprintable() else repr(value)
    elif isinstance(value, Mapping | list | tuple):
        return f"{'a table' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def first(faults: list[str], most: int = 40) -> list[str]:
    """Return the first faults, and how many more there are."""
    return faults if len(faults) <= most else [*faults[:most], f"... and {len(faults) - most} more"]


def dumps(value: Any) -> str:
    """Return stable JSON text: two spaces, keys in the order of their definition, a newline at the end."""
    return json.dumps(to_data(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomic(path: Path, content: bytes | str, *, sync: bool = True, replace: bool = True) -> None:
    """Write a file so that a reader never meets half of it; see `atomic.write_file`, and `utf8` for text."""
    raw = utf8(content).encode() if isinstance(content, str) else content
    atomic.write_file(path, raw, sync=sync, replace=replace)


def utf8(text: str) -> str:
    """Return text as a file can hold it: of names that are no UTF-8, U+FFFD stands for what cannot be read."""
    return _HALVES.sub("\ufffd", text)


def seal(value: Any) -> str:
    """JSON text of a dataclass whose field `sha256`, empty so far, is filled with the digest of the text without it.

    It tells damage, not who wrote it: anybody can seal what he changed.
    """
    text = utf8(dumps(value))
    return text.replace('"sha256": ""', f'"sha256": "{hashlib.sha256(text.encode()).hexdigest()}"', 1)


def seal_holds(raw: bytes, digest: str) -> bool:
    """Return whether JSON text is what was sealed with this digest."""
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
            faults.append(f"{where}: got {shown(data)}, allowed: {', '.join(map(repr, typing.get_args(kind)))}")
        return data
    if origin in (tuple, list):
        return _read_sequence(kind, data, faults, where)
    if origin is dict:
        if not isinstance(data, Mapping):
            faults.append(f"{where}: got {type(data).__name__}, expected a table")
            return {}
        value_kind = typing.get_args(kind)[1]
        if value_kind is Any:
            return {str(k): v for k, v in data.items()}
        table = {}
        for key, value in data.items():
            table[str(key)] = _read(value_kind, value, faults, f"{where}.{str(key)[:_SHOWN_CHARACTERS]}")
            if len(faults) >= _ENOUGH_FAULTS:
                break
        return table
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
    if all(isinstance(kind, type) and not dataclasses.is_dataclass(kind) for kind in kinds) and len(kinds) > 1:
        tried = [f"{where}: got {shown(data)}, expected {' or '.join(kind.__name__ for kind in kinds)}"]
    faults.extend(tried)
    return None


def _read_scalar(kind: Any, data: Any, faults: list[str], where: str) -> Any:
    whole = isinstance(data, int) and not isinstance(data, bool)
    if whole and not _fits(data):
        faults.append(f"{where}: got {shown(data)}, allowed: {INTEGER_BITS}")
        return data
    if kind is float and whole:
        return float(data)
    wrong = not isinstance(data, kind) or (kind is not bool and isinstance(data, bool))
    if wrong or (kind is float and not math.isfinite(data)):
        faults.append(f"{where}: got {shown(data)}, expected {kind.__name__}")
    return data


def _read_sequence(kind: Any, data: Any, faults: list[str], where: str) -> Any:
    if not isinstance(data, list | tuple):
        faults.append(f"{where}: got {shown(data)}, expected a list")
        return ()
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(arguments) != len(data):
            faults.append(f"{where}: got {len(data)} values, expected {len(arguments)}")
            return ()
        return tuple(_read(a, v, faults, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, data, strict=True)))
    values = []
    for i, v in enumerate(data):
        values.append(_read(arguments[0], v, faults, f"{where}[{i}]"))
        if len(faults) >= _ENOUGH_FAULTS:
            break
    return tuple(values) if typing.get_origin(kind) is tuple else values


@functools.cache
def _layout(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return types and fields of a dataclass by name; asking for them costs more than reading a value."""
    return typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls) if f.init}


def _read_dataclass(cls: Any, data: Any, faults: list[str], where: str) -> Any:
    if not isinstance(data, Mapping):
        faults.append(f"{where}: got {type(data).__name__}, expected a table")
        return None
    kinds, fields = _layout(cls)
    for key in data:
        if key not in fields and len(faults) < _ENOUGH_FAULTS:
            faults.append(f"{where}: unknown key {shown(key)}, allowed: {', '.join(fields)}")
    values: dict[str, Any] = {}
    before = len(faults)
    for name, item in fields.items():
        if name in data:
            values[name] = _read(_chosen(item, kinds[name], data), data[name], faults, f"{where}.{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.append(f"{where}: missing key {name!r}")
    return cls(**values) if len(faults) == before else None


def _chosen(item: Any, kind: Any, data: Mapping[str, Any]) -> Any:
    """Return the type that another key chooses for a field (see `chosen_by`), otherwise the declared one."""
    key, kinds = choice(item)
    if not kinds:
        return kind
    chosen = data.get(key)
    return kinds[chosen] | None if isinstance(chosen, str) and chosen in kinds else Any  # the key has the fault
