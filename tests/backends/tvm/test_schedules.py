from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.backends.tvm.schedules import ISAS, Product, Tile, default_tile, isa, pad, panels, tiles
from edgevit.errors import TargetError

SIZES = st.integers(1, 400)


@given(rows=SIZES, columns=SIZES, name=st.sampled_from(sorted(ISAS)))
def test_a_default_tile_fits_registers_and_shape(rows: int, columns: int, name: str) -> None:
    found = default_tile(isa(name), Product(rows=rows, columns=columns, depth=64))
    assert 1 <= found.rows <= rows
    assert 1 <= found.vectors <= -(-columns // isa(name).lanes)
    assert found.rows * found.vectors + found.vectors + 1 <= isa(name).registers


def test_default_tiles_of_a_vit() -> None:
    product = Product(rows=197, columns=768, depth=192)
    assert default_tile(isa("avx2"), product) == Tile(rows=4, vectors=3)
    assert default_tile(isa("avx512"), product).rows * default_tile(isa("avx512"), product).vectors >= 24


@given(rows=SIZES, columns=SIZES)
def test_every_candidate_is_offered_once(rows: int, columns: int) -> None:
    found = list(tiles(isa("avx2"), Product(rows=rows, columns=columns, depth=64)))
    assert found and len(set(found)) == len(found)


@given(columns=SIZES, vectors=st.integers(1, 8), lanes=st.sampled_from([4, 8, 16]))
def test_panels_cover_padded_columns(columns: int, vectors: int, lanes: int) -> None:
    full, rest = panels(pad(columns, lanes), Tile(rows=1, vectors=vectors), lanes)
    assert (full * vectors + rest) * lanes == pad(columns, lanes)
    assert 0 <= pad(columns, lanes) - columns < lanes and rest < vectors


def test_an_unknown_instruction_set_names_the_known_ones() -> None:
    with pytest.raises(TargetError, match=r"'mmx'.*avx2, avx512, neon"):
        isa("mmx")
