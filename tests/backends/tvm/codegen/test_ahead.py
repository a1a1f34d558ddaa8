"""Weights are asked for ahead of time, never from beyond their end."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen import ahead  # noqa: E402
from edgevit.backends.tvm.codegen.ahead import LINE, Ahead  # noqa: E402
from edgevit.backends.tvm.codegen.code import Code, buffer  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import ISAS, Product, Tile, isa  # noqa: E402
from edgevit.backends.tvm.codegen.threads import Part  # noqa: E402
from edgevit.backends.tvm.compile import tune  # noqa: E402

BLOB = 1000


def asked(emit: Any, name: str = "avx2", blob: int = BLOB) -> list[int]:
    """The places that a kernel asks for which `emit` writes, all of them known when it is built."""
    code, values = Code(), buffer("weights", blob)
    emit(Ahead(code, isa(name), values, blob))
    text = code.function([values]).script()
    starts = {name: int(value) for name, value in re.findall(r"(v\d+): T.let\[T.int32\] = (\d+)", text)}
    places = re.findall(r"address_of\(weights\[(v\d+)(?: \+ (\d+))?\]\)", text)
    assert len(places) == text.count("llvm.prefetch")
    return [starts[start] + int(more or 0) for start, more in places]


@pytest.mark.parametrize("place", [0, 64, BLOB - LINE, BLOB, 10 * BLOB])
def test_lines_lie_within_the_weights(place: int) -> None:
    places = asked(lambda ahead: ahead.lines(place, 3))
    assert len(places) == 3
    assert places[0] == min(place, BLOB - 3 * LINE)
    assert all(0 <= at <= BLOB - LINE for at in places)


def test_no_more_lines_than_there_are() -> None:
    assert asked(lambda ahead: ahead.lines(64, 5), blob=LINE + 3) == [3]
    assert asked(lambda ahead: ahead.lines(64, 5), blob=LINE - 1) == []


def test_tiles_share_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles together ask for as much as a panel holds, each for another part, and a thread's own tiles too."""
    monkeypatch.setitem(ahead.DISTANCE, "int8", 100)
    rows, tile, words = 40, Tile(rows=4, vectors=2), 10 * 2 * LINE
    for first, count in ((0, 1), (5, 2)):
        part = Part(first=first, end=10, count=count)
        places = [
            at
            for row in range(first * 4, rows, 4)
            for at in asked(lambda a, row=row, part=part: a.panel("int8", 7, words, rows, tile, row, part))
        ]
        assert places == [107 + LINE * i for i in range(20)]


def test_few_tiles_ask_for_nothing() -> None:
    tile = Tile(rows=4, vectors=2)
    assert asked(lambda ahead: ahead.panel("int8", 0, 320, 12, tile, 0, Part(end=3))) == []


@pytest.mark.parametrize("name", ISAS)
def test_only_wide_vectors_ask(name: str) -> None:
    """Instructions count where others are: what runs on them has been counted without."""
    product = Product(rows=8, columns=16, depth=32)
    function, _, _ = tune._float(isa(name), product, Tile(rows=2, vectors=1), np.random.default_rng(0))
    assert ("llvm.prefetch" in function.script()) == (isa(name).lanes > 4)
