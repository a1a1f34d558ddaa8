"""LayerNorm on NEON, straight to int8: rows that share blocks are normalised together, steps come out of one product.

Of what `norm.layer_norm` does this is the part that a Linear's input needs.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    buffer,
    integer,
    lane_sum,
    literal,
    load,
    load_vector,
    number,
    rsqrt,
    splat,
)
from edgevit.backends.tvm.codegen.integers import BLOCK, Integers
from edgevit.backends.tvm.codegen.layout import Alive, Place
from edgevit.backends.tvm.codegen.neon import (
    LANES,
    Chunk,
    halved,
    quartered,
    round_to_int,
    store_chunk,
)
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.backends.tvm.codegen.threads import (
    NORM_STEPS,
    row_tiles,
    row_units,
    shared,
    threads_for,
    units_of,
)
from edgevit.backends.tvm.kernels.common import alive_rows

UNROLLED = 8


def layer_norm(
    isa: Isa,
    arena: int,
    blob: int,
    source: Place,
    target: Integers,
    width: int,
    scale: int,
    shift: int,
    eps: float,
    steps: tuple[int, int],
    alive: Alive | None = None,
) -> Any:
    """Compute target = LN(source) * scale + shift, quantized, row by row.

    `steps` is where the blob has scale and shift in the target's steps, its zero point added to the latter.
    """
    code, memory, values = Code(), buffer("arena", arena), buffer("weights", blob)
    given, there = alive_rows(code, alive, source.rows)
    vectors = -(-source.width // LANES)
    threads = threads_for(isa.threads, source.rows * vectors * NORM_STEPS)
    tile = Tile(rows=target.together, vectors=1)

    def rows(row: Any, part: Tile) -> None:
        bases = [code.let(integer(source.offset) + (row + r) * source.stride) for r in range(part.rows)]
        means, factors = [], []
        for base in bases:
            mean, factor = moments(code, memory, base, source.width, width, eps)
            means.append(mean)
            factors.append(factor)
        splats = [(code.let(splat(m, LANES)), code.let(splat(f, LANES))) for m, f in zip(means, factors, strict=True)]

        def block(first: Any, count: int) -> None:
            """`count` vectors of all rows, the words of one block."""
            made = []
            for r, base in enumerate(bases):
                for v in range(count):
                    mean, factor = splats[r]
                    gain, offset = (load_vector(values, start + (first + v) * LANES, LANES) for start in steps)
                    x = load_vector(memory, base + (first + v) * LANES, LANES)
                    made.append(round_to_int((x - mean) * factor * gain + offset))
            parts = tuple((r, v) for r in range(part.rows) for v in range(count))
            _store(code, memory, target, made, parts, row, first)

        words = BLOCK // target.together
        full, rest = divmod(vectors, words)
        with code.loop(full) as index:
            block(index * words, words)
        if rest:
            block(full * words, rest)
        for index, kept in enumerate(target.kept):
            assert target.exact is not None
            for r, (base, mean, factor) in enumerate(zip(bases, means, factors, strict=True)):
                y = (load(memory, base + kept) - mean) * factor * load(values, scale + kept)
                y = y + load(values, shift + kept)
                code.store(memory, target.exact.offset + (row + r) * target.exact.stride + index, y)

    units = row_units(source.rows, tile)
    with shared(code, threads, units, units_of(there, tile.rows)) as part:
        row_tiles(code, source.rows, tile, rows, part)
    return code.function([memory, values, *given])


def _store(
    code: Code,
    memory: Any,
    target: Integers,
    made: list[Any],
    parts: tuple[tuple[int, int], ...],
    row: Any,
    first: Any,
) -> None:
    """Store four vectors of steps, or fewer."""
    whole = len(made) == BLOCK
    a, b, c, d = [*made, *made[-1:] * (BLOCK - len(made))]
    packed = quartered(halved(a, b), halved(c, d))
    store_chunk(code, memory, target, Chunk(parts=parts, whole=whole), row, first * LANES, packed)


def moments(code: Code, memory: Any, base: Any, columns: int, width: int, eps: float) -> tuple[Any, Any]:
    """Return (mean, 1 / sqrt(variance + eps)) of the first `width` values of a row; those behind them are 0."""

    def total(value: Any, count: int) -> Any:
        """Return the sum of `value(v)` over so many vectors, in four sums that do not wait for each other."""
        sums = [code.register(splat(0.0, LANES)) for _ in range(4)]
        with code.loop(count // UNROLLED) as index:
            for i in range(UNROLLED):
                _add(sums[i % 4], value(index * UNROLLED + i))
        for i in range(count // UNROLLED * UNROLLED, count):
            _add(sums[i % 4], value(i))
        return (sums[0].value + sums[1].value) + (sums[2].value + sums[3].value)

    def loaded(v: Any) -> Any:
        return load_vector(memory, base + v * LANES, LANES)

    def square(v: Any) -> Any:
        centred = code.let(loaded(v) - splat(mean, LANES))
        return centred * centred

    mean = code.let(lane_sum(code, code.let(total(loaded, -(-columns // LANES))), LANES) * number(1 / width))
    full, rest = divmod(width, LANES)
    squares = total(square, full)
    if rest:
        # Left out, not taken off afterwards: that would leave less than nothing where the mean is large.
        used = literal([float(lane < rest) for lane in range(LANES)])
        centred = code.let((loaded(full) - splat(mean, LANES)) * used)
        squares = squares + centred * centred
    variance = lane_sum(code, code.let(squares), LANES) * number(1 / width)
    return mean, code.let(rsqrt(variance + tirx.const(eps, "float32")))


def _add(cell: Any, value: Any) -> None:
    cell.set(cell.value + value)
