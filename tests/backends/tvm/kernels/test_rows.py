"""Rows that an image has: kernels compute these, to the end of the tile that the last one is in, and touch no other."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.layout import Alive, Arena, Blob, Place, pack  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Tile  # noqa: E402
from edgevit.backends.tvm.kernels import common, norm, pooling  # noqa: E402
from edgevit.backends.tvm.kernels.attention import attention, scratch  # noqa: E402
from edgevit.backends.tvm.kernels.common import Epilogue, Weights  # noqa: E402
from edgevit.backends.tvm.kernels.heads import MASKED, Heads  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call, matrix  # noqa: E402

LANES, MOST, PREFIX = AVX2.lanes, 23, 1
ALIVE = Alive(prefix=PREFIX, point=1, points=3)
RNG = np.random.default_rng(0)


def left(rows: int) -> np.ndarray:
    """The output `tokens` of a run with so many rows after the second point, and of others elsewhere."""
    return np.array([10**6, rows - PREFIX, -5], np.int32)


def written(memory: np.ndarray, place: Place) -> int:
    """Rows of a place, from the first on, that a kernel wrote; none behind them may be."""
    done = ~np.isnan(matrix(memory, place)).any(axis=1)
    count = int(done.sum())
    assert done[:count].all()
    return count


@pytest.mark.parametrize("rows", [1, 4, 5, 22, MOST])
def test_a_product_computes_whole_tiles_of_the_rows_there_are(rows: int) -> None:
    arena, blob, tile = Arena(LANES), Blob(), Tile(rows=4, vectors=1)
    source, target = arena.place(MOST, 8), arena.place(MOST, 16)
    weight = RNG.standard_normal((8, 16)).astype(np.float32)
    packed = Weights(offset=blob.add(pack(weight, tile, LANES)), depth=8, columns=16)
    memory = np.full(arena.size, np.nan, np.float32)
    matrix(memory, source)[...] = x = RNG.standard_normal((MOST, 8)).astype(np.float32)
    function = common.product(AVX2, arena.size, blob.size, source, target, packed, tile, Epilogue(), ALIVE)
    call(function, memory, blob.array(), left(rows))
    assert written(memory, target) == min(-(-rows // tile.rows) * tile.rows, MOST)
    np.testing.assert_allclose(matrix(memory, target)[:rows], (x @ weight)[:rows], atol=1e-5)


@pytest.mark.parametrize("rows", [2, 9, MOST])
def test_norms_and_means_are_of_the_rows_there_are(rows: int) -> None:
    arena, blob = Arena(LANES), Blob()
    source, target, mean, sizes = arena.place(MOST, 8), arena.place(MOST, 8), arena.place(1, 8), arena.place(1, 50)
    ones, zeros = blob.add(np.ones(8)), blob.add(np.zeros(8))
    memory = np.full(arena.size, np.nan, np.float32)
    matrix(memory, source)[:rows] = x = RNG.standard_normal((rows, 8)).astype(np.float32)
    matrix(memory, sizes)[0, : rows - PREFIX] = weights = RNG.integers(1, 4, rows - PREFIX)
    function = norm.layer_norm(AVX2, arena.size, blob.size, source, target, 8, ones, zeros, 1e-6, 1, 1, ALIVE)
    call(function, memory, blob.array(), left(rows))
    assert written(memory, target) == rows
    call(pooling.average(AVX2, arena.size, source.after(PREFIX), mean, sizes, ALIVE), memory, left(rows))
    np.testing.assert_allclose(matrix(memory, mean)[0], weights @ x[PREFIX:] / 50, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 8, 9, MOST])
@pytest.mark.parametrize("queries", [1, MOST])
def test_attention_is_over_the_keys_there_are(rows: int, queries: int) -> None:
    """All else in memory is no number, so that whatever is read beside them is seen."""
    arena, tile, width = Arena(LANES), Tile(rows=2, vectors=1), 8
    query, key, value, target = (arena.place(n, width) for n in (queries, MOST, MOST, queries))
    bias = arena.place(1, MOST)
    heads = Heads(count=1, width=width, stride=width, query=query, key=key, value=value)
    work = scratch(arena, heads, tile, AVX2)
    memory = np.full(arena.size, np.nan, np.float32)
    there = min(queries, rows)
    q, k, v = (RNG.standard_normal((n, width)).astype(np.float32) for n in (there, rows, rows))
    for place, values in ((query, q), (key, k), (value, v)):
        matrix(memory, place)[: len(values)] = values
    memory[bias.offset : bias.end] = MASKED
    memory[bias.offset : bias.offset + rows] = own = RNG.standard_normal(rows).astype(np.float32)
    call(
        attention(AVX2, arena.size, 16, heads, target, work, tile, bias, ALIVE),
        memory,
        np.zeros(16, np.float32),
        left(rows),
    )
    shares = np.exp(q @ k.T + own)
    expected = shares / shares.sum(axis=1, keepdims=True) @ v
    np.testing.assert_allclose(matrix(memory, target)[:there], expected, atol=1e-5)


def test_no_number_of_tokens_leads_out_of_the_rows_that_a_kernel_was_built_for() -> None:
    arena, blob = Arena(LANES), Blob()
    target, beyond = arena.place(MOST, 8), arena.place(4, 8)
    skip = blob.add(np.ones((2, 8)))
    memory = np.zeros(arena.size, np.float32)
    function = common.add_skip_rows(AVX2, arena.size, blob.size, target, skip, PREFIX, ALIVE)
    call(function, memory, blob.array(), left(10**6))
    assert (matrix(memory, target) == 1).all() and not matrix(memory, beyond).any()
