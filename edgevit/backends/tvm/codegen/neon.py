"""What NEON does with small integers: narrowing, saturating, looking up, and blocks of 16 bytes that rows share.

A block is `together` rows by whole words of each, as `Integers` describes it: what a sdot or smmla takes from the left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    bits,
    instruction,
    integer,
    joined,
    lanes_of,
    load,
    load_vector,
    splat,
)
from edgevit.backends.tvm.codegen.integers import BLOCK, Integers

LANES = 4
INT8, INT16, INT32 = "int8x16", "int16x8", "int32x4"


def neon(kind: str, name: str, *arguments: Any) -> Any:
    """Return an instruction `name` of NEON; its own name ends in the types of what it takes."""
    return instruction(kind, f"llvm.aarch64.neon.{name}", *arguments)


def round_to_int(value: Any) -> Any:
    """Return four float32 as int32, rounded to even and saturated."""
    return neon(INT32, "fcvtns.v4i32.v4f32", value)


def halved(first: Any, second: Any) -> Any:
    """Return eight int32 as int16, saturated."""
    a, b = (neon("int16x4", "sqxtn.v4i16", value) for value in (first, second))
    return joined(a, b, *range(8))


def quartered(first: Any, second: Any) -> Any:
    """Return sixteen int16 as int8, saturated."""
    a, b = (neon("int8x8", "sqxtn.v8i8", value) for value in (first, second))
    return joined(a, b, *range(16))


def low_halves(first: Any, second: Any) -> Any:
    """Return the lower 16 bits of eight int32."""
    a, b = (bits(INT16, value) for value in (first, second))
    return joined(a, b, *range(0, 16, 2))


def constant(values: np.ndarray) -> Any:
    """Return 16 bytes of integers as a vector of their type, `BLOCK` words."""
    words = np.ascontiguousarray(values).view(np.int32)
    lanes = [tirx.const(int(word), "int32") for word in words]
    return bits(f"{values.dtype}x{values.size}", tirx.Shuffle(lanes, [integer(i) for i in range(len(words))]))


def spread16(value: Any) -> Any:
    """Return an int16 in eight lanes."""
    return tirx.Broadcast(value, 8)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Four vectors of one tile that are narrowed together, as (row, vector); the words of a block, if `whole`."""

    parts: tuple[tuple[int, int], ...]
    whole: bool


def chunks(rows: int, vectors: int, together: int, *, aligned: bool) -> Iterator[Chunk]:
    """Yield a tile of results in fours: blocks, where its vectors fill them and begin at one (`aligned`).

    A block with fewer rows or vectors repeats the last one.
    """
    words = BLOCK // together
    if aligned and vectors % words == 0:
        for row in range(0, rows, together):
            for v in range(0, vectors, words):
                members = ((min(row + r, rows - 1), v + i) for r in range(together) for i in range(words))
                yield Chunk(parts=tuple(members), whole=True)
        return
    every = [(row, v) for v in range(vectors) for row in range(rows)]
    for first in range(0, len(every), BLOCK):
        yield Chunk(parts=tuple(every[first : first + BLOCK]), whole=False)


def store_chunk(code: Code, memory: Any, target: Integers, chunk: Chunk, row: Any, column: Any, packed: Any) -> None:
    """Store 16 int8, one word for every part of a chunk of the tile at (row, column)."""
    packed = code.let(bits(f"float32x{BLOCK}", packed))
    word = tirx.floordiv(integer(column), integer(LANES))
    if chunk.whole:
        r, v = chunk.parts[0]
        code.store_vector(memory, target.word(row + r, word + v), packed, BLOCK)
        return
    for lane, (r, v) in enumerate(chunk.parts):
        code.store(memory, target.word(row + r, word + v), lanes_of(packed, lane))


def filled(parts: Sequence[Any]) -> list[Any]:
    """Return four values; the last one stands in for those that are missing."""
    return [*parts, *[parts[-1]] * (BLOCK - len(parts))]


def put_tile(
    code: Code,
    memory: Any,
    values: Any,
    target: Integers,
    tile: tuple[int, int, bool],
    place: tuple[Any, Any],
    value: Callable[[int, int], Any],
    *,
    stepped: bool = False,
) -> None:
    """Quantize and store a tile of float vectors, `value(row, vector)`.

    Args:
        code: where to.
        memory: the arena.
        values: the blob that quantizers are in.
        target: where to.
        tile: rows, vectors, and whether columns begin at a block.
        place: first row and column.
        value: the floats.
        stepped: whether these count in the target's steps already.
    """
    rows, vectors, aligned = tile
    inverse, zero = load(values, target.grid), load(values, target.grid + 1)
    shift = code.let(spread16(tirx.Cast("int16", zero)))
    scale = None if stepped else code.let(splat(inverse, LANES))
    for chunk in chunks(rows, vectors, target.together, aligned=aligned):
        steps = []
        for part in chunk.parts:
            x = value(*part)
            steps.append(round_to_int(x if scale is None else x * scale))
        a, b, c, d = filled(steps)
        halves = (neon(INT16, "sqadd.v8i16", half, shift) for half in (halved(a, b), halved(c, d)))
        store_chunk(code, memory, target, chunk, *place, quartered(*halves))


def put_kept(
    code: Code,
    memory: Any,
    target: Integers,
    tile: tuple[int, int],
    place: tuple[Any, Any],
    value: Callable[[int, int], Any],
) -> None:
    """Store those columns of a tile, `value(row, vector)`, that are needed in float32 too."""
    (rows, vectors), (row, column) = tile, place
    for index, kept in enumerate(target.kept):
        assert target.exact is not None
        vector, lane = divmod(kept, LANES)
        for v in range(vectors):
            with code.when(integer(column) + integer(v * LANES) == integer(vector * LANES)):
                for r in range(rows):
                    at = target.exact.offset + (row + r) * target.exact.stride + index
                    code.store(memory, at, lanes_of(code.let(value(r, v)), lane))


def load16(memory: Any, index: Any) -> Any:
    """Return four words of the arena as eight int16."""
    return bits(INT16, load_vector(memory, index, BLOCK))
