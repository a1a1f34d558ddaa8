"""Where words of a matrix lie whose rows share blocks of 16 bytes."""

from __future__ import annotations

import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.integers import word_of  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Place  # noqa: E402
from edgevit.backends.tvm.codegen.neon import chunks  # noqa: E402


@pytest.mark.parametrize("together", [1, 2, 4])
def test_every_word_has_its_own_place(together: int) -> None:
    place = Place(offset=64, rows=8, width=12, stride=12)
    found = {(row, i): int(word_of(place, together, row, i)) for row in range(8) for i in range(12)}
    assert sorted(found.values()) == list(range(64, 64 + 96))
    # The words of a block, one row's behind another's, are one piece of memory.
    words = 4 // together
    block = [found[row, i] for row in range(together) for i in range(words)]
    assert block == list(range(64, 68))
    assert found[0, words] == 68 and found[together, 0] == 64 + together * 12


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("rows", "vectors"), [(12, 2), (5, 4), (1, 3)])
def test_chunks_are_every_vector_of_a_tile(together: int, aligned: bool, rows: int, vectors: int) -> None:
    found = list(chunks(rows, vectors, together, aligned=aligned))
    assert {part for chunk in found for part in chunk.parts} == {(r, v) for r in range(rows) for v in range(vectors)}
    for chunk in found:
        assert 1 <= len(chunk.parts) <= 4
        # A block begins where one does.
        r, v = chunk.parts[0]
        assert not chunk.whole or (r % together, v % (4 // together), len(chunk.parts)) == (0, 0, 4)
