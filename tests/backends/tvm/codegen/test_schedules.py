from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.backends.tvm.codegen.dots import dot
from edgevit.backends.tvm.codegen.schedules import (
    ISAS,
    Product,
    Tile,
    default_tile,
    isa,
    pad,
    panels,
    tiles,
    tuned,
)
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


@pytest.mark.parametrize(
    ("depth", "columns", "tile"),
    [
        (192, 576, Tile(rows=6, vectors=4)),  # 5 x 5 would leave a panel of one vector
        (192, 192, Tile(rows=6, vectors=4)),
        (768, 192, Tile(rows=9, vectors=3)),  # a panel of four is larger than what is near
    ],
)
def test_integer_tiles_fill_columns_and_stay_near(depth: int, columns: int, tile: Tile) -> None:
    made = isa("avx512vnni")
    assert default_tile(made, Product(rows=197, columns=columns, depth=depth, dot=dot(made, 8))) == tile


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
    with pytest.raises(TargetError, match=r"'mmx'.*sse42, avx2, avx512, .*neon, dotprod"):
        isa("mmx")


def test_code_for_one_cpu_needs_what_that_cpu_has() -> None:
    plain = isa("neon")
    small, large = (tuned(plain, cpu) for cpu in ("cortex-a72", "cortex-a76"))
    assert small.target["mcpu"] == "cortex-a72" and small.flags == plain.flags
    assert large.target["mcpu"] == "cortex-a76" and set(large.flags) - set(plain.flags) >= {"asimddp", "atomics"}
    assert plain.target["mcpu"] == "generic"


def test_the_smallest_core_gets_a_schedule_that_keeps_its_sums_in_registers() -> None:
    assert tuned(isa("neon"), "cortex-a53") == isa("neon")


@pytest.mark.parametrize(("name", "cpu"), [("neon", "cortex-m4"), ("avx2", "cortex-a72")])
def test_a_cpu_that_does_not_fit_is_refused(name: str, cpu: str) -> None:
    with pytest.raises(TargetError, match=f"no CPU '{cpu}' with {name}"):
        tuned(isa(name), cpu)
