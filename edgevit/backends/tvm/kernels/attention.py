"""Attention of all heads in float32, as one kernel: scores, softmax and values of a few query rows at a time.

Query, key and value are read where the qkv product left them. Per head, keys and values are packed once as the inner
loops read them; scores of one row tile are all that is ever held.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    LOG2_E,
    Code,
    Register,
    bits,
    exp,
    integer,
    lane_max,
    lane_sum,
    load,
    load_lanes,
    load_vector,
    number,
    pairwise,
    splat,
    to_float,
    whole,
)
from edgevit.backends.tvm.codegen.integers import Matrix, put
from edgevit.backends.tvm.codegen.layout import Alive, Arena, Place
from edgevit.backends.tvm.codegen.narrow import rounded
from edgevit.backends.tvm.codegen.schedules import BY_LANE, Isa, Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    Part,
    each,
    parts,
    row_tiles,
    row_units,
    units_of,
)
from edgevit.backends.tvm.kernels.common import multiply, packed
from edgevit.backends.tvm.kernels.heads import (
    Head,
    Heads,
    Panel,
    attend,
    attention_threads,
    block_rows,
    mask,
    packed_heads,
    panels_of,
    repeated,
    rows_of,
)
from edgevit.backends.tvm.kernels.pack_rows import pack_rows

# 2^x with |x| <= 1/2: the polynomial whose largest relative error, 7.5e-8, is the least.
POWER = (1.32764725e-3, 9.67554189e-3, 5.55071309e-2, 2.40221202e-1, 6.93146944e-1, 1.00000012)
LEAST = -126.0  # the power of 2 that is no subnormal number
APART = 4  # sums, or largest values, beside each other, so that none waits for the one before


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """One head's keys, transposed, and values, packed panel by panel; scores of one block of rows, and 1 / sums.

    Of the latter two each thread has a copy, `distance` behind the one before; of the former each head has one, `apart`
    behind the one before (0: all of them have the same). `second` is the tile of the product with the values, where it
    is another than that with the keys.
    """

    keys: Place
    values: Place
    scores: Place
    inverse: Place
    distance: int
    apart: int = 0
    second: Tile | None = None

    def head(self, index: Any) -> Scratch:
        """Return the places of one head."""
        by = index * self.apart
        return replace(self, keys=self.keys.moved(by), values=self.values.moved(by))

    def of(self, part: Part) -> Scratch:
        """Return the places of one thread."""
        behind = part.index * self.distance
        return replace(self, scores=self.scores.moved(behind), inverse=self.inverse.moved(behind))


def scratch(arena: Arena, heads: Heads, tile: Tile, isa: Isa, second: Tile | None = None) -> Scratch:
    """Return places for one head at a time, or for all where several threads attend; `second` as in `Scratch`."""
    padded, block, first = pad(heads.key.rows, isa.lanes), block_rows(isa, heads, tile), arena.mark()
    keys, values = arena.place(heads.width, padded), arena.place(heads.value.rows, heads.stride)
    apart = repeated(arena, first, packed_heads(isa, heads))
    begin = arena.mark()
    scores, inverse = arena.place(block, padded), arena.place(1, block)
    distance = arena.repeat(begin, parts(attention_threads(isa, heads), -(-heads.query.rows // block)))
    own = {"scores": scores, "inverse": inverse}
    return Scratch(keys=keys, values=values, **own, distance=distance, apart=apart, second=second)


def attention(
    isa: Isa,
    arena: int,
    blob: int,
    heads: Heads,
    target: Matrix,
    work: Scratch,
    tile: Tile,
    bias: Place | None = None,
    alive: Alive | None = None,
) -> Any:
    """Return attend per head, target = softmax(query key^T + bias) value; the scale is in the query already.

    `bias` has a value for every key, and `MASKED` in all columns that are none. Where the number of keys is known only
    when it runs, so is that of queries, unless these are fewer.
    """

    def head(code: Code, memory: Any, values: Any, column: Any) -> Head:
        threads = attention_threads(isa, heads)
        kind = _Attention if isa.lanes == BY_LANE else _Wide
        return kind(code, memory, values, heads, column, target, work, tile, isa.lanes, threads, bias)

    return attend(
        isa, arena, blob, heads, Tile(rows=work.scores.rows, vectors=tile.vectors), head, alive, apart=work.apart > 0
    )


class _Attention(Head):
    """One head in float32: keys are packed transposed, values panel by panel."""

    def pack(self) -> None:
        self.pack_keys()
        self.pack_values()

    def pack_keys(self) -> None:
        """Keys transposed, panel by panel; columns of padding are 0. No two threads write into one panel's lines."""
        code, key = self.code, self.heads.key
        for panel in panels_of(key.rows, self.tile, self.lanes):
            columns = panel.vectors * self.lanes
            with each(code, self.threads, panel.count, panel.there(self.keys)) as index:
                first = panel.first + index * columns
                base = self.work.keys.offset + first * self.heads.width
                used = panel.used_of(code, first, self.keys)
                with code.loop(used) as k, code.loop(self.heads.width) as e:
                    value = load(self.memory, key.offset + (first + k) * key.stride + self.column + e)
                    code.store(self.memory, base + e * columns + k, value)
                with code.loop(columns - used) as k, code.loop(self.heads.width) as e:
                    code.store(self.memory, base + e * columns + used + k, number(0.0))

    def pack_values(self) -> None:
        code, value, lanes = self.code, self.heads.value, self.lanes
        for panel in panels_of(self.heads.stride, self._second, lanes):
            columns = panel.vectors * lanes
            with code.loop(panel.count) as index, each(code, self.threads, value.rows, self.keys) as k:
                first = panel.first + index * columns
                with code.loop(panel.vectors) as v:
                    source = value.offset + k * value.stride + self.column + first + v * lanes
                    place = self.work.values.offset + first * value.rows + k * columns + v * lanes
                    code.store_vector(self.memory, place, load_vector(self.memory, source, lanes), lanes)

    def rows(self, row: Any, block: Tile) -> None:
        """Scores, softmax and values of the query rows from `row` on."""
        there = rows_of(self.code, self.queries, row, block.rows)
        self._scores(row, block.rows, there)
        self._softmax(block.rows if there is None else there)
        self._values(row, block.rows, there)

    @property
    def _second(self) -> Tile:
        return self.work.second or self.tile

    def _product(
        self,
        tile: Tile,
        rows: int,
        columns: int,
        depth: int,
        base: int,
        there: tuple[Any, Any, Any],
        left: Callable[[Any, int, Any, int], Any],
        start: Callable[[Panel, Any, int], Any],
        store: Callable[[Any, Any, Any], None],
    ) -> None:
        """`[rows, depth] x [depth, columns]`, panel by panel of the packed matrix at `base`; a panel stays in cache.

        Args:
            tile: of the product.
            rows: of this block.
            columns: of the packed matrix.
            depth: of the product.
            base: where the packed matrix starts.
            there: how many of the rows, columns and of the depth exist (None: all).
            left: (first row of the tile, row in it, k, count) to so many values from `k` on.
            start: (panel, its first column, vector) to what its sums start from.
            store: takes row, column and vector of every result.
        """
        code, lanes = self.code, self.lanes
        for panel in panels_of(columns, tile, lanes):
            width = panel.vectors * lanes
            with code.loop(panel.count if there[1] is None else panel.there(there[1])) as index:
                first = panel.first + index * width
                right = packed(self.memory, base + first * depth, width, lanes)

                def emit(row: Any, part: Tile, panel: Panel = panel, first: Any = first, right: Any = right) -> None:
                    sums = multiply(
                        code,
                        lanes,
                        part,
                        depth if there[2] is None else there[2],
                        lambda r, k, n: left(row, r, k, n),
                        right,
                        lambda v: start(panel, first, v),
                    )
                    for r in range(part.rows):
                        for v in range(part.vectors):
                            store(row + r, first + v * lanes, sums[r * part.vectors + v].value)

                down = Part(end=row_units(rows, tile) if there[0] is None else units_of(there[0], tile.rows))
                row_tiles(code, rows, Tile(rows=tile.rows, vectors=panel.vectors), emit, down)

    def _scores(self, row: Any, rows: int, there: Any) -> None:
        query, scores = self.heads.query, self.work.scores

        def start(panel: Panel, first: Any, v: int) -> Any:
            if self.bias is None:
                return mask(panel.used - v * self.lanes, self.lanes)
            return load_vector(self.memory, self.bias.offset + first + v * self.lanes, self.lanes)

        def store(r: Any, column: Any, value: Any) -> None:
            self.code.store_vector(self.memory, scores.offset + r * scores.stride + column, value, self.lanes)

        self._product(
            self.tile,
            rows,
            self.heads.key.rows,
            self.heads.width,
            self.work.keys.offset,
            (there, self.keys, None),
            lambda first, r, e, count: load_lanes(
                self.memory, query.offset + (row + first + r) * query.stride + self.column + e, count
            ),
            start,
            store,
        )

    def _softmax(self, rows: Any) -> None:
        """Scores to exp(score - largest), in place, and 1 / their sum beside them."""
        code, lanes, scores = self.code, self.lanes, self.work.scores
        vectors = scores.stride // lanes if self.keys is None else code.let(units_of(self.keys, lanes))
        with code.loop(rows) as row:
            base = scores.offset + row * scores.stride
            largest = code.register(load_vector(self.memory, base, lanes))
            with code.loop(vectors - 1) as v:
                x = load_vector(self.memory, base + (v + 1) * lanes, lanes)
                largest.set(tirx.max(largest.value, x))
            top = code.let(splat(lane_max(code, largest.value, lanes), lanes))
            total = code.register(splat(0.0, lanes))
            with code.loop(vectors) as v:
                x = exp(code, load_vector(self.memory, base + v * lanes, lanes) - top, lanes)
                code.store_vector(self.memory, base + v * lanes, x, lanes)
                total.set(total.value + x)
            inverse = number(1.0) / lane_sum(code, total.value, lanes)
            code.store(self.memory, self.work.inverse.offset + row, inverse)

    def _values(self, row: Any, rows: int, there: Any) -> None:
        scores, target = self.work.scores, self.target

        def store(r: Any, column: Any, value: Any) -> None:
            value = value * splat(load(self.memory, self.work.inverse.offset + r), self.lanes)
            put(self.code, self.memory, self.values, target, row + r, self.column + column, value, self.lanes)

        self._product(
            self._second,
            rows,
            self.heads.stride,
            self.heads.value.rows,
            self.work.values.offset,
            (there, None, self.keys),
            lambda first, r, k, count: load_lanes(self.memory, scores.offset + (first + r) * scores.stride + k, count),
            lambda *_: splat(0.0, self.lanes),
            store,
        )


class _Wide(_Attention):
    """The same with wide vectors: keys are transposed in registers, and softmax is of powers of 2."""

    def pack_keys(self) -> None:
        key = self.heads.key
        pack_rows(
            self.code,
            self.lanes,
            self.memory,
            self.threads,
            (key.rows, self.heads.width),
            lambda row: key.offset + row * key.stride + self.column,
            self.work.keys.offset,
            self.tile,
            self.keys,
        )

    def _softmax(self, rows: Any) -> None:
        code, lanes, scores = self.code, self.lanes, self.work.scores
        vectors = scores.stride // lanes if self.keys is None else code.let(units_of(self.keys, lanes))
        with code.loop(rows) as row:
            base = scores.offset + row * scores.stride
            first = code.let(load_vector(self.memory, base, lanes))
            largest = [code.register(first) for _ in range(APART)]
            totals = [code.register(splat(0.0, lanes)) for _ in range(APART)]

            def compare(v: Any, cell: Register, base: Any = base) -> None:
                cell.set(tirx.max(cell.value, load_vector(self.memory, base + v * lanes, lanes)))

            def weigh(v: Any, cell: Register, base: Any = base) -> None:
                x = load_vector(self.memory, base + v * lanes, lanes) * splat(LOG2_E, lanes) - top
                x = power(code, x, lanes)
                code.store_vector(self.memory, base + v * lanes, x, lanes)
                cell.set(cell.value + x)

            _in_turn(code, vectors, largest, compare)
            found = lane_max(code, pairwise(code, tirx.max, [cell.value for cell in largest]), lanes)
            top = code.let(splat(found * number(LOG2_E), lanes))
            _in_turn(code, vectors, totals, weigh)
            total = lane_sum(code, pairwise(code, operator.add, [cell.value for cell in totals]), lanes)
            code.store(self.memory, self.work.inverse.offset + row, number(1.0) / total)


def _in_turn(code: Code, count: Any, cells: Sequence[Register], emit: Callable[[Any, Register], None]) -> None:
    """Call `emit(v, cell)` for 0 <= v < count, each cell in turn."""
    full = whole(count, len(cells))
    with code.loop(full) as index:
        for v, cell in enumerate(cells):
            emit(index * len(cells) + v, cell)
    with code.loop(count - full * len(cells)) as index:
        emit(integer(full) * len(cells) + index, cells[0])


def power(code: Code, x: Any, lanes: int) -> Any:
    """Return 2^x for x <= 0 on x86, relative error below 3e-7 (measured); what is below 2^-126 is 2^-126."""
    x = code.let(tirx.max(x, splat(LEAST, lanes)))
    steps = code.let(rounded(x, lanes))
    rest = code.let(x - to_float(steps, lanes))
    value = splat(POWER[0], lanes)
    for coefficient in POWER[1:]:
        value = value * rest + splat(coefficient, lanes)
    raised = bits(f"int32x{lanes}", value) + (steps << tirx.Broadcast(integer(23), lanes))
    return code.let(bits(f"float32x{lanes}", raised))
