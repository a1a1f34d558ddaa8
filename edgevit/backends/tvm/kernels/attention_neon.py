"""Attention of all heads in int8 on NEON with sdot or smmla: scores and softmax in 16 bits, a block of rows at a time.

What `attention_int8` computes in float this computes in integers. Queries and keys have a scale per token, values one
per column. A head's scores, keys' scales in them, are brought to 16 bits by one factor, the largest that no product of
a query's and a key's length can exceed. Below the largest one of a row they count in 256ths of a power of 2; its whole
part shifts what a table gives for the rest. Scores and exponentials lie in blocks as `Integers` describes them, so that
the second product takes them as they come out of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    LOG2_E,
    Code,
    bits,
    integer,
    lane_max,
    load,
    load_vector,
    number,
    splat,
    to_float,
)
from edgevit.backends.tvm.codegen.dots import Dot, Inner, Sums
from edgevit.backends.tvm.codegen.integers import BLOCK, WORD, Integers, Matrix, put, word_of
from edgevit.backends.tvm.codegen.layout import Alive, Place
from edgevit.backends.tvm.codegen.neon import (
    INT32,
    LANES,
    halved,
    low_halves,
    neon,
    put_kept,
    put_tile,
    round_to_int,
)
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    Part,
    row_tiles,
    row_units,
    units_of,
)
from edgevit.backends.tvm.kernels.heads import MASKED, Heads, attend, attention_threads, block_rows, panels_of, rows_of
from edgevit.backends.tvm.kernels.neon_head import Scratch, scratch
from edgevit.backends.tvm.kernels.neon_packing import TINY, Packing
from edgevit.backends.tvm.kernels.neon_softmax import FRACTION, Softmax

__all__ = ["Scratch", "attention", "scratch"]

ROOM = 32700.0  # of 16 bits, some left for rounding


def attention(
    isa: Isa,
    arena: int,
    blob: int,
    heads: Heads,
    target: Matrix,
    work: Scratch,
    dot: Dot,
    tile: Tile,
    bias: Place | None = None,
    alive: Alive | None = None,
) -> Any:
    """Attend per head, target = softmax(query key^T + bias) value; the scale is in the query already.

    `bias` has a value for every key, in powers of 2, and `heads.MASKED` in all columns that are none. `alive` is
    as in `heads.attend`, and comes with a bias.
    """

    def head(code: Code, memory: Any, values: Any, column: Any) -> _Attention:
        threads = attention_threads(isa, heads)
        return _Attention(code, memory, values, heads, column, target, work, tile, dot, threads, bias)

    return attend(
        isa, arena, blob, heads, Tile(rows=block_rows(isa, heads, tile, whole=True), vectors=tile.vectors), head, alive
    )


class _Attention(Packing, Softmax):
    """One head, whose columns start at `column`."""

    def begin(self) -> None:
        """Find the head's factor to 16 bits and every key's, and bring biases to 16 bits."""
        code, memory, work = self.code, self.memory, self.work
        keys, queries = units_of(self.there, LANES), self.heads.query.rows if self.queries is None else self.queries

        def top(place: Place, vectors: Any) -> Any:
            found = code.register(splat(TINY, LANES))
            with code.loop(vectors) as v:
                found.set(tirx.max(found.value, load_vector(memory, place.offset + v * LANES, LANES)))
            return code.let(lane_max(code, code.let(found.value), LANES))

        # Of four lanes at the end those that are no query's must not count: lengths are found for whole blocks.
        longest = (
            top(work.query_length, units_of(queries, LANES)) if self.together == LANES else self._top_query(queries)
        )
        factor = number(ROOM) / (top(work.key_length, keys) * longest)
        factor = code.let(tirx.min(factor, number(1.0 - 2**-20) / top(work.key_scale, keys)))
        # Scores of the row that has scale 1, in 256ths of a power of 2.
        self.unit = code.let(number(LOG2_E * FRACTION) / factor)
        with code.loop(units_of(self.there, 8) * 2) as v:
            scale = load_vector(memory, work.key_scale.offset + v * LANES, LANES)
            steps = round_to_int(scale * splat(factor * number(2.0**31), LANES))
            code.store_vector(memory, work.factor.offset + v * LANES, bits("float32x4", steps), LANES)
        if self.bias is None:
            return
        with code.loop(units_of(self.there, 8)) as v:
            pair = []
            for i in range(2):
                column = v * 8 + i * LANES
                if i and self.bias.stride % 8:
                    # Behind the last bias there is no key.
                    x = load_vector(memory, self.bias.offset + tirx.min(column, integer(self.bias.stride - 4)), LANES)
                    x = tirx.min(
                        x, splat(tirx.Select(column < self.bias.stride, number(-MASKED), number(MASKED)), LANES)
                    )
                else:
                    x = load_vector(memory, self.bias.offset + column, LANES)
                pair.append(round_to_int(x * splat(float(FRACTION), LANES)))
            code.store_vector(memory, work.bias.offset + v * BLOCK, bits("float32x4", halved(*pair)), BLOCK)

    def _top_query(self, queries: Any) -> Any:
        found = self.code.register(number(TINY))
        with self.code.loop(queries) as row:
            found.set(tirx.max(found.value, load(self.memory, self.work.query_length.offset + row)))
        return self.code.let(found.value)

    def rows(self, row: Any, block: Tile) -> None:
        """Scores, softmax and values of the query rows from `row` on."""
        there = rows_of(self.code, self.queries, row, block.rows)
        self._scores(row, block.rows, there)
        groups = row_units(block.rows, Tile(rows=self.together, vectors=1))
        with self.code.loop(groups if there is None else units_of(there, self.together)) as group:
            self.softmax(row, group * self.together)
        self._values(row, block.rows, there)

    def _scores(self, row: Any, rows: int, there: Any) -> None:
        """Sums to 16 bits, in blocks of rows by columns."""
        code, work = self.code, self.work
        width = pad(self.heads.stride, self.dot.depth) // WORD
        zero = tirx.Broadcast(integer(0), LANES)

        def store(r0: Any, first: Any, sums: Sums) -> None:
            factors = [
                code.let(bits(INT32, load_vector(self.memory, work.factor.offset + first + v * LANES, LANES)))
                for v in range(len(sums[0]))
            ]
            scaled = [
                [neon(INT32, "sqrdmulh.v4i32", total, factors[v]) for v, total in enumerate(line)] for line in sums
            ]
            word = tirx.floordiv(integer(first), integer(LANES))
            for r in range(0, len(sums), self.together):
                for v in range(0, len(sums[0]), self.words):
                    parts = [
                        scaled[min(r + i, len(sums) - 1)][min(v + j, len(sums[0]) - 1)]
                        for i in range(self.together)
                        for j in range(self.words)
                    ]
                    at = self.score(r0 + r, tirx.floordiv(word + v, integer(self.words)))
                    for half in range(2):
                        packed = low_halves(*parts[2 * half : 2 * half + 2])
                        code.store_vector(self.memory, at + half * BLOCK, bits("float32x4", packed), BLOCK)

        def left(r: Any, word: Any, count: int) -> Any:
            return load_vector(self.memory, word_of(work.query, self.together, row + r, word), count)

        for panel in panels_of(self.heads.key.rows, self.tile, LANES):
            columns = panel.vectors * LANES
            with code.loop(panel.count if self.keys is None else panel.there(self.keys)) as index:
                first = panel.first + index * columns
                base = work.keys.offset + first * width
                self._product(
                    rows, there, panel.vectors, width * WORD // self.dot.depth, left, base, lambda v: zero, first, store
                )

    def _product(
        self,
        rows: int,
        there: Any,
        vectors: int,
        steps: Any,
        left: Callable[[Any, Any, int], Any],
        base: Any,
        start: Callable[[int], Any],
        first: Any,
        store: Callable[[Any, Any, Sums], None],
    ) -> None:
        """One panel of columns, from `first` on, of a product; `store` takes first row, first column, sums."""

        def tile(row: Any, part: Tile) -> None:
            inner = Inner(
                code=self.code,
                tile=part,
                steps=steps,
                left=lambda r, word, n: left(row + r, word, n),
                right=lambda word, n: load_vector(self.memory, base + word, n),
                start=start,
            )
            store(row, first, self.dot.sums(inner))

        down = Part(end=row_units(rows, self.tile) if there is None else units_of(there, self.tile.rows))
        row_tiles(self.code, rows, Tile(rows=self.tile.rows, vectors=vectors), tile, down)

    def _values(self, row: Any, rows: int, there: Any) -> None:
        code, memory, work, target = self.code, self.memory, self.work, self.target
        aligned = self.tile.vectors % self.words == 0

        def left(r: Any, word: Any, count: int) -> Any:
            return load_vector(memory, word_of(work.shares, self.together, r, word), count)

        def store(r0: Any, first: Any, sums: Sums) -> None:
            count, vectors = len(sums), len(sums[0])
            columns = [
                code.let(load_vector(memory, work.value_scale.offset + first + v * LANES, LANES))
                for v in range(vectors)
            ]
            inverses = [code.let(load(memory, work.inverse.offset + r0 + r)) for r in range(count)]

            def plain(r: int, v: int) -> Any:
                return to_float(sums[r][v], LANES) * columns[v] * splat(inverses[r], LANES)

            place = (row + r0, self.column + first)
            if not isinstance(target, Integers):
                for r in range(count):
                    for v in range(vectors):
                        put(code, memory, self.values, target, place[0] + r, place[1] + v * LANES, plain(r, v), LANES)
                return
            put_kept(code, memory, target, (count, vectors), place, plain)
            step = load(self.values, target.grid)
            columns = [code.let(column * splat(step, LANES)) for column in columns]
            put_tile(code, memory, self.values, target, (count, vectors, aligned), place, plain, stepped=True)

        for panel in panels_of(self.heads.stride, self.tile, LANES):
            width = panel.vectors * LANES
            with code.loop(panel.count) as index:
                first = panel.first + index * width
                base = work.values.offset + first * (work.depth // WORD)

                def start(v: int, first: Any = first) -> Any:
                    return bits(INT32, load_vector(memory, work.value_start.offset + first + v * LANES, LANES))

                self._product(rows, there, panel.vectors, self.steps(), left, base, start, first, store)
