"""Attention that is linear in the number of tokens (arXiv 2009.14794), as T2T-ViT's stem uses it.

qp (kp^T v) / (qp . sum of kp + 1e-8), with features exp(x w^T - |x|^2 / 2) / sqrt(m). Shapes: T tokens of a block, K
columns of query, key and value, m features. Bodies of kernels: a stage of T2T-ViT is several of them per block.
"""

from __future__ import annotations

from typing import Any

from edgevit.backends.tvm.codegen.code import (
    Code,
    exp,
    lane_sum,
    literal,
    load,
    load_lanes,
    load_vector,
    number,
    splat,
)
from edgevit.backends.tvm.codegen.layout import Place
from edgevit.backends.tvm.codegen.schedules import Tile
from edgevit.backends.tvm.codegen.threads import row_tiles
from edgevit.backends.tvm.kernels.common import multiply

GUARD = 1e-8


def features(code: Code, lanes: int, memory: Any, source: Place, target: Place, count: int) -> None:
    """Make target = exp(target - |source|^2 / 2) / sqrt(count), row by row; target holds source w^T before.

    The columns of padding of both must be 0, and those of target are again.
    """
    with code.loop(source.rows) as row:
        squares = code.register(splat(0.0, lanes))
        with code.loop(-(-source.width // lanes)) as v:
            x = code.let(load_vector(memory, source.offset + row * source.stride + v * lanes, lanes))
            squares.set(squares.value + x * x)
        half = code.let(lane_sum(code, squares.value, lanes) * number(0.5))
        for v in range(-(-count // lanes)):
            place = target.offset + row * target.stride + v * lanes
            y = exp(code, load_vector(memory, place, lanes) - splat(half, lanes), lanes)
            used = literal([count**-0.5 if v * lanes + lane < count else 0.0 for lane in range(lanes)])
            code.store_vector(memory, place, y * used, lanes)


def clear(code: Code, lanes: int, memory: Any, place: Place) -> None:
    """Make all of it 0."""
    with code.loop(place.rows * place.stride // lanes) as v:
        code.store_vector(memory, place.offset + v * lanes, splat(0.0, lanes), lanes)


def add(code: Code, lanes: int, memory: Any, source: Place, target: Place) -> None:
    """Do target += source."""
    with code.loop(target.rows * target.stride // lanes) as v:
        place = target.offset + v * lanes
        total = load_vector(memory, place, lanes) + load_vector(memory, source.offset + v * lanes, lanes)
        code.store_vector(memory, place, total, lanes)


def add_keys(
    code: Code, lanes: int, memory: Any, keys: Place, value: Place, target: Place, total: Place, tile: Tile
) -> None:
    """Do target `[m, K]` += keys^T value, and total `[1, m]` += the sum of the rows of keys."""
    vectors = -(-value.width // lanes)
    for first in range(0, vectors, tile.vectors):
        part = Tile(rows=tile.rows, vectors=min(tile.vectors, vectors - first))

        def rows(row: Any, tile: Tile, first: int = first) -> None:
            sums = multiply(
                code,
                lanes,
                tile,
                keys.rows,
                lambda r, t, _: load(memory, keys.offset + t * keys.stride + row + r),
                lambda t, v: load_vector(memory, value.offset + t * value.stride + (first + v) * lanes, lanes),
                lambda _: splat(0.0, lanes),
                along=False,
            )
            for index, found in enumerate(sums):
                r, v = divmod(index, tile.vectors)
                place = target.offset + (row + r) * target.stride + (first + v) * lanes
                code.store_vector(memory, place, load_vector(memory, place, lanes) + found.value, lanes)

        row_tiles(code, target.rows, part, rows)
    with code.loop(-(-keys.width // lanes)) as v:
        sums = code.register(load_vector(memory, total.offset + v * lanes, lanes))
        with code.loop(keys.rows) as row:
            sums.set(sums.value + load_vector(memory, keys.offset + row * keys.stride + v * lanes, lanes))
        code.store_vector(memory, total.offset + v * lanes, sums.value, lanes)


def mix(
    code: Code, lanes: int, memory: Any, queries: Place, mixed: Place, total: Place, target: Place, tile: Tile
) -> None:
    """Make target `[T, K]` = queries mixed / (queries . total + 1e-8); mixed `[m, K]`, total `[1, m]`."""
    vectors = -(-target.width // lanes)

    def rows(row: Any, part: Tile) -> None:
        inverses = []
        for r in range(part.rows):
            dot = code.register(splat(0.0, lanes))
            with code.loop(-(-queries.width // lanes)) as v:
                q = load_vector(memory, queries.offset + (row + r) * queries.stride + v * lanes, lanes)
                dot.set(dot.value + q * load_vector(memory, total.offset + v * lanes, lanes))
            inverses.append(code.let(number(1.0) / (lane_sum(code, dot.value, lanes) + number(GUARD))))
        for first in range(0, vectors, tile.vectors):
            narrow = Tile(rows=part.rows, vectors=min(tile.vectors, vectors - first))
            sums = multiply(
                code,
                lanes,
                narrow,
                mixed.rows,
                lambda r, k, count: load_lanes(memory, queries.offset + (row + r) * queries.stride + k, count),
                lambda k, v, first=first: load_vector(  # type: ignore[misc]
                    memory, mixed.offset + k * mixed.stride + (first + v) * lanes, lanes
                ),
                lambda _: splat(0.0, lanes),
            )
            for index, found in enumerate(sums):
                r, v = divmod(index, narrow.vectors)
                place = target.offset + (row + r) * target.stride + (first + v) * lanes
                code.store_vector(memory, place, found.value * splat(inverses[r], lanes), lanes)

    row_tiles(code, queries.rows, Tile(rows=tile.rows, vectors=min(tile.vectors, vectors)), rows)
