from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.layout import Arena, Blob, Place, pack, pad_columns  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Tile, pad  # noqa: E402
from edgevit.backends.tvm.kernels import common, norm, pooling  # noqa: E402
from edgevit.backends.tvm.kernels.attention import attention, scratch  # noqa: E402
from edgevit.backends.tvm.kernels.common import Epilogue, Weights  # noqa: E402
from edgevit.backends.tvm.kernels.heads import Heads  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call, matrix  # noqa: E402

LANES = AVX2.lanes
RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "tile"),
    [
        (13, 20, 40, Tile(rows=6, vectors=2)),
        (12, 16, 32, Tile(rows=6, vectors=2)),
        (1, 33, 10, Tile(rows=1, vectors=8)),
        (3, 5, 24, Tile(rows=6, vectors=1)),
        (5, 8, 72, Tile(rows=4, vectors=3)),
    ],
)
def test_product(rows: int, depth: int, columns: int, tile: Tile) -> None:
    arena, blob, padded = Arena(LANES), Blob(), pad(columns, LANES)
    source, target, beyond = arena.place(rows, depth), arena.place(rows, columns), arena.place(1, 8)
    weight, bias = draw(depth, columns), draw(columns)
    packed = Weights(
        offset=blob.add(pack(pad_columns(weight, padded), tile, LANES)),
        depth=depth,
        columns=padded,
        bias=blob.add(pad_columns(bias, padded)),
    )
    memory = draw(arena.size)
    before, x = memory.copy(), matrix(memory, source).copy()
    function = common.product(AVX2, arena.size, blob.size, source, target, packed, tile, Epilogue())
    call(function, memory, blob.array())
    np.testing.assert_allclose(matrix(memory, target), x @ weight + bias, atol=2e-5)
    np.testing.assert_array_equal(memory[: target.offset], before[: target.offset])
    np.testing.assert_array_equal(matrix(memory, beyond), matrix(before, beyond))


def test_epilogues_come_in_their_order() -> None:
    arena, blob, tile = Arena(LANES), Blob(), Tile(rows=4, vectors=2)
    source, target = arena.place(7, 12), arena.place(7, 24)
    weight, bias, table = draw(12, 24), draw(24), draw(7, 24)
    packed = Weights(offset=blob.add(pack(weight, tile, LANES)), depth=12, columns=24, bias=blob.add(bias))
    epilogue = Epilogue(activation="relu", onto=True, table=blob.add(table))
    memory = draw(arena.size)
    expected = matrix(memory, target) + table + np.maximum(matrix(memory, source) @ weight + bias, 0)
    call(
        common.product(AVX2, arena.size, blob.size, source, target, packed, tile, epilogue),
        memory,
        blob.array(),
    )
    np.testing.assert_allclose(matrix(memory, target), expected, atol=1e-5)


def normed(x: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    result: np.ndarray = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return result


@pytest.mark.parametrize(("width", "groups"), [(32, 1), (20, 1), (20, 3), (16, 2)])
def test_layer_norm(width: int, groups: int) -> None:
    arena, blob, stride = Arena(LANES), Blob(), pad(width, LANES)
    place = arena.place(5, groups * stride)
    scale, shift = 1 + 0.1 * draw(width), 0.1 * draw(width)
    rows = [blob.add(pad_columns(values, stride)) for values in (scale, shift)]
    memory = np.zeros(arena.size, np.float32)
    split = matrix(memory, place).reshape(5, groups, stride)
    split[..., :width] = 3 + draw(5, groups, width)
    expected = normed(split[..., :width], 1e-6) * scale + shift
    source = Place(offset=place.offset, rows=5, width=width if groups > 1 else place.width, stride=place.stride)
    function = norm.layer_norm(AVX2, arena.size, blob.size, source, source, width, rows[0], rows[1], 1e-6, groups)
    call(function, memory, blob.array())
    after = matrix(memory, place).reshape(5, groups, stride)
    np.testing.assert_allclose(after[..., :width], expected, atol=1e-5)
    assert not after[..., width:].any()


@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_layer_norm_of_few_values_far_from_zero(width: int) -> None:
    """What the padding adds to the squares is many times the variance."""
    arena, blob, stride = Arena(LANES), Blob(), pad(width, LANES)
    place = arena.place(50, stride)
    scale, shift = (blob.add(pad_columns(np.full(width, value, np.float32), stride)) for value in (1, 0))
    memory = np.zeros(arena.size, np.float32)
    values = matrix(memory, place)
    values[:, :width] = 300 + draw(50, width) + draw(50, 1)
    expected = normed(values[:, :width], 1e-6)
    function = norm.layer_norm(AVX2, arena.size, blob.size, place, place, width, scale, shift, 1e-6)
    call(function, memory, blob.array())
    after = matrix(memory, place)
    assert np.isfinite(after).all() and not after[:, width:].any()
    np.testing.assert_allclose(after[:, :width], expected, atol=0.02)


@pytest.mark.parametrize(
    ("rows", "keys", "heads", "width"), [(197, 197, 1, 64), (30, 30, 3, 12), (1, 50, 2, 16), (7, 9, 2, 20)]
)
@pytest.mark.parametrize("shift", [0.0, -200.0])
def test_attention(rows: int, keys: int, heads: int, width: int, shift: float) -> None:
    """Scores far below 0 show whether the columns of padding take part in the softmax."""
    arena, stride, tile = Arena(LANES), pad(width, LANES), Tile(rows=6, vectors=2)
    inner = heads * stride
    qkv, context = arena.place(keys, 3 * inner), arena.place(rows, inner)
    query, key, value = (qkv.columns(part * inner, inner) for part in range(3))
    split = Heads(count=heads, width=width, stride=stride, query=query.first(rows), key=key, value=value)
    work = scratch(arena, split, tile, AVX2)
    memory = np.full(arena.size, np.nan, np.float32)
    parts = [matrix(memory, place).reshape(-1, heads, stride) for place in (split.query, key, value)]
    matrix(memory, qkv)[...] = 0
    for part in parts:
        part[..., :width] = draw(*part.shape[:2], width)
    parts[0][...] *= width**-0.5
    parts[0][..., 0], parts[1][..., 0] = 1.0, shift
    q, k, v = (part[..., :width].astype(np.float64).transpose(1, 0, 2) for part in parts)
    scores = q @ k.transpose(0, 2, 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (scores / scores.sum(-1, keepdims=True)) @ v
    call(attention(AVX2, arena.size, 16, split, context, work, tile), memory, np.zeros(16, np.float32))
    got = matrix(memory, context).reshape(rows, heads, stride)
    np.testing.assert_allclose(got[..., :width].transpose(1, 0, 2), expected, atol=6e-5 if shift else 3e-6)
    assert not got[..., width:].any()


@pytest.mark.parametrize("side", [2, 4, 8])
def test_patches(side: int) -> None:
    image = RNG.integers(0, 256, (1, 2 * side, 3 * side, 3), dtype=np.uint8)
    arena = Arena(LANES)
    place = arena.place(6, side * side * 3)
    memory = np.zeros(arena.size, np.float32)
    call(common.patches(AVX2, arena.size, 2 * side, 3 * side, side, place), image, memory)
    split = image.reshape(2, side, 3, side, 3).transpose(0, 2, 1, 3, 4).reshape(6, -1)
    np.testing.assert_array_equal(matrix(memory, place), split)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("effort", [0.0, 1.0, -1.0, float("inf"), float("-inf")])
def test_a_gate_decides_and_says_so(rows: int, effort: float) -> None:
    arena, blob = Arena(LANES), Blob()
    stream, work = arena.place(rows, 20), arena.place(1, 20)
    weight, memory = draw(20), np.zeros(arena.size, np.float32)
    matrix(memory, stream)[...] = draw(rows, 20)
    logit = float(normed(matrix(memory, stream).mean(0), 1e-6) @ weight)
    offset = blob.add(pad_columns(weight, 24))
    gates = np.full(3, 7, np.uint8)
    for limit in (logit + effort - 0.01, logit + effort + 0.01) if np.isfinite(effort) else (0.0,):
        function = pooling.decide(AVX2, arena.size, blob.size, 3, stream, work, offset, limit, 1e-6, 1)
        result: Any = call(function, memory, blob.array(), np.array(effort, np.float32), gates)
        assert bool(result) is (logit + effort > limit)
        assert gates.tolist() == [7, int(logit + effort > limit), 7]


def test_skip_rows_go_to_prefix_tokens_and_patches() -> None:
    arena, blob = Arena(LANES), Blob()
    stream = arena.place(6, 16)
    rows = draw(3, 16)
    offset = blob.add(rows)
    for count in (6, 2, 1):
        memory = draw(arena.size)
        expected = matrix(memory, stream).copy()
        expected[:count] += rows[np.minimum(np.arange(count), 2)]
        call(common.add_skip_rows(AVX2, arena.size, blob.size, stream.first(count), offset, 2), memory, blob.array())
        np.testing.assert_allclose(matrix(memory, stream), expected, rtol=1e-6)
