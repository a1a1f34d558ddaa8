from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.util import strict_json
from edgevit.util.limits import DOCUMENT_VALUES


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float = 0.0
    n: int = 0
    rest: tuple[float, ...] = ()
    table: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    n: int = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    kind: str
    size: Point | Pair | None = field(default=None, metadata=strict_json.chosen_by("kind", {"point": Point}))
    setting: str | int | bool = ""


HOSTILE = {
    "a number that overflows a float": (b"1" + b"0" * 400, "an integer of 401 digits"),
    "a number that overflows a float, negative": (b"-1" + b"0" * 400, "an integer of 401 digits"),
    "more digits than Python converts": (b"9" * 5000, "an integer of 5000 digits"),
    "millions of digits": (b"9" * 15_000_000, "an integer of 15000000 digits"),
    "one past 64 bits": (str(2**63).encode(), "an integer of 19 digits"),
    "an infinite float": (b"[1e999]", "no finite number"),
    "an infinite float in capitals": (b"[-10.5E+309]", "no finite number"),
    "an infinite float of many digits": (b"[" + b"9" * 400 + b".5]", "no finite number"),
    "NaN": (b"[NaN]", "no finite number"),
    "Infinity": (b"[-Infinity]", "no finite number"),
    "nested 100,000 deep": (b"[" * 100_000, "nests too deep"),
    "nested 65 deep": (b"[" * 65 + b"]" * 65, "nests too deep"),
    "tables nested 100,000 deep": (b'{"a":' * 100_000, "nests too deep"),
    "half a surrogate pair": (rb'{"a": "\ud800"}', "half a surrogate"),
    "half a surrogate pair as key": (rb'{"\uDFFF": 1}', "half a surrogate"),
    "a key twice": (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
    "a key twice, in a list": (b'[{"a": 1, "a": 1}]', "the key 'a' is there twice"),
    "millions of empty entries": (b"[" + b"{}," * 5_000_000 + b"{}]", "10000002 values"),
    "too large": (b" " * ((16 << 20) + 1), "has 16777217 bytes"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "no UTF-8": (b'"\xff"', "utf-8"),
    "a surrogate in UTF-8": (b'"\xed\xa0\x80"', "utf-8"),
    "cut": (b'{"a": ', "line 1"),
    "empty": (b"", "line 1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_a_value_error_of_one_line(name: str) -> None:
    raw, words = HOSTILE[name]
    with pytest.raises(ValueError) as caught:
        strict_json.parse(raw)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_what_is_within_the_limits_is_read() -> None:
    assert strict_json.parse(str(2**63 - 1)) == 2**63 - 1
    assert strict_json.parse(str(-(2**63) + 1)) == -(2**63) + 1
    assert strict_json.parse(b"[" * 64 + b"]" * 64)
    assert strict_json.parse(rb'"\ud83d\ude00 \\ud800"') == "\U0001f600 \\ud800"
    assert len(strict_json.parse("[" + "0," * (DOCUMENT_VALUES.value - 2) + "0]")) == DOCUMENT_VALUES.value - 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES)
def test_parse_agrees_with_the_standard_library(value: object) -> None:
    text = json.dumps(value, allow_nan=False)
    assert strict_json.parse(text) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"x": 10**400}, "Point.x: got an integer of 1329 bits"),
        ({"n": 10**5000}, "Point.n: got an integer of 16610 bits"),
        ({"n": -(2**63)}, "Point.n: got an integer of 64 bits"),
        ({"table": {"k": 2**70}}, "Point.table.k: got an integer of 71 bits"),
        ({"x": "y" * 10**6}, "Point.x: got 'yyy"),
        ({"x": [0] * 10**6}, "got a list of 1000000, expected float"),
        ({"n": "\x1b[2J\n"}, r"got '\x1b[2J\n', expected int"),
        ({"\x1b[2J": 1}, r"unknown key '\x1b[2J'"),
    ],
)
def test_values_from_any_parser_are_checked_and_shown_short(data: dict[str, object], words: str) -> None:
    faults: list[str] = []
    assert strict_json.from_data(Point, data, faults) is None
    assert len(faults) == 1 and words in faults[0]
    assert len(faults[0]) < 200 and faults[0].isprintable()


@pytest.mark.parametrize(
    "data",
    [{"rest": [None] * 60_000}, {"table": {str(i): None for i in range(60_000)}}, {str(i): 1 for i in range(60_000)}],
)
def test_of_many_faults_the_first_are_enough(data: dict[str, object]) -> None:
    faults: list[str] = []
    assert strict_json.from_data(Point, data, faults) is None
    assert 100 <= len(faults) <= 102
    assert strict_json.first(faults, 20)[-1] == f"... and {len(faults) - 20} more"


def test_a_layout_is_looked_up_once() -> None:
    assert strict_json._layout(Point) is strict_json._layout(Point)


@pytest.mark.parametrize(
    ("data", "read", "fault"),
    [
        ({"kind": "point", "size": {"n": 3}}, Shape(kind="point", size=Point(n=3)), ""),
        ({"kind": "point", "size": None}, Shape(kind="point"), ""),
        ({"kind": "point"}, Shape(kind="point"), ""),
        ({"kind": "point", "size": {"y": 3}}, None, "s.size: unknown key 'y', allowed: x, n, rest, table"),
        ({"kind": [], "size": {"n": 3}}, None, "s.kind: got a list of 0, expected str"),
        ({"kind": "point", "setting": 0}, Shape(kind="point", setting=0), ""),
        ({"kind": "point", "setting": False}, Shape(kind="point", setting=False), ""),
        ({"kind": "point", "setting": 0.5}, None, "s.setting: got 0.5, expected str or int or bool"),
    ],
)
def test_another_key_chooses_a_type_and_a_union_names_all_of_its_own(
    data: dict[str, object], read: Shape | None, fault: str
) -> None:
    faults: list[str] = []
    got = strict_json.from_data(Shape, data, faults, "s")
    assert (got, faults) == (read, [fault] if fault else [])
    assert got is None or type(got.setting) is type(data.get("setting", ""))
