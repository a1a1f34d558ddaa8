from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgevit.backends.tvm.codegen.layout import (
    ALIGN,
    Arena,
    Blob,
    pack,
    pad_columns,
    pad_heads,
)
from edgevit.backends.tvm.codegen.schedules import Tile


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 70)), min_size=1, max_size=6))
def test_places_lie_apart_and_aligned(shapes: list[tuple[int, int]]) -> None:
    arena = Arena(8)
    places = [arena.place(*shape) for shape in shapes]
    for before, after in zip(places, places[1:], strict=False):
        assert before.end <= after.offset
    assert all(p.offset % ALIGN == 0 and p.stride % 8 == 0 and p.stride >= p.width for p in places)
    assert places[-1].end <= arena.size < places[-1].end + ALIGN


def test_the_arena_is_as_large_as_the_largest_stage_not_their_sum() -> None:
    arena = Arena(8)
    arena.place(2, 8)
    mark = arena.mark()
    large, small = arena.place(100, 8), None
    arena.release(mark)
    small = arena.place(3, 8)
    assert small.offset == large.offset and arena.size == large.end


def test_parts_of_a_place() -> None:
    place = Arena(8).place(5, 20)
    assert (place.stride, place.first(2).end, place.after(2).offset) == (24, 48, 48)
    assert place.after(2).rows == 3 and place.columns(8, 4).offset == 8 and place.columns(8, 4).width == 4


def test_a_blob_keeps_every_array_aligned() -> None:
    blob = Blob()
    parts = [np.arange(n, dtype=np.float32) + n for n in (3, 16, 1, 40)]
    offsets = [blob.add(part) for part in parts]
    for offset, part in zip(offsets, parts, strict=True):
        assert offset % ALIGN == 0
        np.testing.assert_array_equal(blob.array()[offset : offset + part.size], part)
    assert blob.array().size == blob.size


def test_packed_panels_hold_their_columns_row_by_row() -> None:
    weight = np.arange(3 * 40, dtype=np.float32).reshape(3, 40)
    packed = pack(weight, Tile(rows=6, vectors=2), 8)
    np.testing.assert_array_equal(packed[:48].reshape(3, 16), weight[:, :16])
    np.testing.assert_array_equal(packed[48:96].reshape(3, 16), weight[:, 16:32])
    np.testing.assert_array_equal(packed[96:].reshape(3, 8), weight[:, 32:])


def test_padding_puts_zeros_behind_columns_and_behind_every_head() -> None:
    assert pad_columns(np.ones((2, 3)), 5).tolist() == [[1, 1, 1, 0, 0]] * 2
    assert pad_heads(np.arange(1, 7), 2, 3, 4).tolist() == [1, 2, 3, 0, 4, 5, 6, 0]
