"""Attention of all heads in int8, a kernel like `attention.attention`, with its scales found while it runs.

Queries and keys have a scale per token, values one per column; exponentials of scores, 0 to 1, are integers of 255
steps, and their sum is the integers' own. Both products are exact in int32; scores and softmax are float.

Exponentials are cut off after adding another fraction in every lane. With one half everywhere the many small ones
beside a large one would all be lost; so they are lost in some lanes only, as many as is right on average. In DeiT-Ti
and ViT-Ti that makes what attention gives 3 dB more exact.
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
    lane_sum,
    literal,
    load,
    load_lanes,
    load_vector,
    number,
    splat,
    to_float,
)
from edgevit.backends.tvm.codegen.dots import Dot, Inner
from edgevit.backends.tvm.codegen.integers import (
    LOW,
    WORD,
    Matrix,
    store_integers,
)
from edgevit.backends.tvm.codegen.layout import Alive, Place
from edgevit.backends.tvm.codegen.narrow import put_vectors
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.backends.tvm.codegen.threads import (
    Part,
    row_tiles,
    row_units,
    units_of,
)
from edgevit.backends.tvm.kernels.heads import (
    Heads,
    Panel,
    attend,
    attention_threads,
    mask,
    rows_of,
)
from edgevit.backends.tvm.kernels.int8_packing import TINY, Packed, Packing, Scratch, scratch

__all__ = ["POWER", "Attention", "attention", "instructions", "scratch", "thresholds"]

# 2^f for 0 <= f <= 1, highest power first: relative error 1.1e-4, a 40th of a step, and exact at both ends.
POWER = (0.07826796919107437, 0.22630767524242401, 0.69542437791824341, 1.0)


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
    """Return attend per head, target = softmax(query key^T + bias) value; the scale is in the query already.

    `bias` has a value for every key, in powers of 2, and `heads.MASKED` in all columns that are none. `alive` is as in
    `heads.attend`.
    """

    def head(code: Code, memory: Any, values: Any, column: Any) -> Attention:
        threads = attention_threads(isa, heads)
        return Attention(code, memory, values, heads, column, target, work, tile, dot, threads, bias)

    block = Tile(rows=work.scores.rows, vectors=tile.vectors)
    return attend(isa, arena, blob, heads, block, head, alive, apart=work.apart > 0)


def instructions(dot: Dot) -> int:
    """How many multiplying instructions the code has, at least: one tile of one row and vector for either product."""
    return 2 * dot.count(Tile(rows=1, vectors=1))


class Attention(Packing):
    """One head, its scores in float32."""

    def rows(self, row: Any, block: Tile) -> None:
        """Scores, softmax and values of the query rows from `row` on."""
        there = self._there(row, block.rows)
        rows = block.rows if there is None else there
        self._queries(row, rows)
        self._scores(block.rows, there)
        self._softmax(rows)
        self._values(row, block.rows, there)

    def _there(self, row: Any, rows: int) -> Any:
        return rows_of(self.code, self.queries, row, rows)

    def _queries(self, row: Any, rows: Any) -> None:
        code, query, work, lanes = self.code, self.heads.query, self.work, self.lanes
        vectors, words = self.heads.stride // lanes, lanes // WORD
        zero = tirx.Broadcast(integer(self.half if self.unsigned else 0), lanes)
        with code.loop(rows) as r:
            source = query.offset + (row + r) * query.stride + self.column
            largest = self._largest(vectors, lambda v: source + v * lanes)
            top = code.let(tirx.max(lane_max(code, largest, lanes), number(TINY)))
            # Scores for powers of 2.
            code.store(self.memory, work.scale.offset + r, top * number(LOG2_E / self.most))
            inverse = code.let(number(self.most) / top)
            with code.loop(vectors) as v:
                x = load_vector(self.memory, source + v * lanes, lanes) * splat(inverse, lanes)
                place = work.query.offset + r * work.query.stride + v * words
                store_integers(code, self.memory, place, self._rounded(x) + zero, self.dot.stored, lanes)

    def _scores(self, rows: int, there: Any) -> None:
        keys, work, lanes = self.work.keys, self.work, self.lanes

        def store(panel: Panel, r: Any, first: Any, totals: list[Any]) -> None:
            for v, total in enumerate(totals):
                one(panel, r, first + v * lanes, v, total)

        def one(panel: Panel, r: Any, column: Any, v: int, total: Any) -> None:
            scale = splat(load(self.memory, work.scale.offset + r), lanes)
            scale = scale * load_vector(self.memory, keys.scale.offset + column, lanes)
            score = to_float(total, lanes) * scale
            if self.bias is not None:
                score = score + load_vector(self.memory, self.bias.offset + column, lanes)
            elif panel.used < (v + 1) * lanes:
                score = score + mask(panel.used - v * lanes, lanes)
            place = work.scores.offset + r * work.scores.stride + column
            self.code.store_vector(self.memory, place, score, lanes)

        self._product(rows, self.heads.key.rows, work.query, keys, store, (there, self.keys))

    def _softmax(self, rows: Any) -> None:
        """Scores to 255 * 2^(score - largest) in whole steps, and 1 / their sum beside them."""
        code, lanes, scores, shares = self.code, self.lanes, self.work.scores, self.work.shares
        vectors = scores.stride // lanes if self.keys is None else code.let(units_of(self.keys, lanes))
        words = lanes // WORD
        low, up = tirx.Broadcast(integer(LOW[self.dot.stored]), lanes), literal(thresholds(lanes))
        with code.loop(rows) as row:
            base = scores.offset + row * scores.stride
            largest = code.register(load_vector(self.memory, base, lanes))
            with code.loop(vectors - 1) as v:
                largest.set(tirx.max(largest.value, load_vector(self.memory, base + (v + 1) * lanes, lanes)))
            top = code.let(splat(lane_max(code, largest.value, lanes), lanes))
            total = code.register(tirx.Broadcast(integer(0), lanes))
            with code.loop(vectors) as v:
                x = load_vector(self.memory, base + v * lanes, lanes) - top
                steps = code.let(tirx.Cast(f"int32x{lanes}", _power(code, x, lanes, self.steps) + up))
                total.set(total.value + steps)
                place = shares.offset + row * shares.stride + v * words
                store_integers(code, self.memory, place, steps + low, self.dot.stored, lanes)
            inverse = number(1.0) / to_float(lane_sum(code, total.value, lanes))
            code.store(self.memory, self.work.inverse.offset + row, inverse)

    def _values(self, row: Any, rows: int, there: Any) -> None:
        values, work, lanes = self.work.values, self.work, self.lanes

        def store(_: Panel, r: Any, first: Any, totals: list[Any]) -> None:
            inverse = self.code.let(splat(load(self.memory, work.inverse.offset + r), lanes))
            scales = [
                load_vector(self.memory, values.scale.offset + first + v * lanes, lanes) for v in range(len(totals))
            ]
            found = [to_float(total, lanes) * scale * inverse for total, scale in zip(totals, scales, strict=True)]
            put_vectors(self.code, self.memory, self.values, self.target, row + r, self.column + first, found, lanes)

        self._product(rows, self.heads.stride, work.shares, values, store, (there, None))

    def _product(
        self,
        rows: int,
        columns: int,
        source: Place,
        right: Packed,
        store: Callable[[Panel, Any, Any, list[Any]], None],
        there: tuple[Any, Any],
    ) -> None:
        """`[rows, depth]` integers times a packed matrix; `store` takes panel, row, first column, its sums.

        Of rows and columns, `there` exist (None: all).
        """
        code, lanes, dot = self.code, self.lanes, self.dot
        for panel in self._panels(columns):
            width = panel.vectors * lanes
            with code.loop(panel.count if there[1] is None else panel.there(there[1])) as index:
                first = panel.first + index * width
                base = right.words.offset + first * (right.depth // WORD)

                def tile(row: Any, part: Tile, panel: Panel = panel, first: Any = first, base: Any = base) -> None:
                    inner = Inner(
                        code=code,
                        tile=part,
                        steps=self._steps(right),
                        left=lambda r, word, n: load_lanes(
                            self.memory, source.offset + (row + r) * source.stride + word, n
                        ),
                        right=lambda word, n: load_lanes(self.memory, base + word, n),
                        start=lambda v: bits(
                            f"int32x{lanes}", load_vector(self.memory, right.start.offset + first + v * lanes, lanes)
                        ),
                    )
                    for r, totals in enumerate(dot.sums(inner)):
                        store(panel, row + r, first, totals)

                down = Part(end=row_units(rows, self.tile) if there[0] is None else units_of(there[0], self.tile.rows))
                row_tiles(code, rows, Tile(rows=self.tile.rows, vectors=panel.vectors), tile, down)


def thresholds(lanes: int) -> list[float]:
    """What is added before fractions are cut off: spread evenly over 0 to 1, neighbours far apart (bits reversed)."""
    size = lanes.bit_length() - 1
    return [(int(f"{lane:0{size}b}"[::-1], 2) + 0.5) / lanes for lane in range(lanes)]


def _power(code: Code, x: Any, lanes: int, steps: int) -> Any:
    """Return steps * 2^x for x <= 0, relative error as in `POWER`; x is clamped to -126."""
    x = code.let(tirx.max(x, splat(-126.0, lanes)))
    whole = code.let(tirx.floor(x))
    f = code.let(x - whole)
    value = splat(steps * POWER[0], lanes)
    for coefficient in POWER[1:]:
        value = value * f + splat(steps * coefficient, lanes)
    exponent = tirx.Cast(f"int32x{lanes}", whole) * tirx.Broadcast(integer(1 << 23), lanes)
    return bits(f"float32x{lanes}", bits(f"int32x{lanes}", value) + exponent)
