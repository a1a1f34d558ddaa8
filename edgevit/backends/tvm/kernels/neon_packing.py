"""Queries, keys and values of one head as int8, packed as sdot and smmla take them, with scales found on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    bits,
    integer,
    lanes_of,
    load_vector,
    number,
    splat,
    to_float,
    unrolled,
    whole,
)
from edgevit.backends.tvm.codegen.integers import BLOCK, WORD, word_of
from edgevit.backends.tvm.codegen.layout import Place
from edgevit.backends.tvm.codegen.neon import (
    INT8,
    INT32,
    LANES,
    constant,
    halved,
    neon,
    quartered,
    round_to_int,
)
from edgevit.backends.tvm.codegen.schedules import Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    each,
    row_units,
    units_of,
)
from edgevit.backends.tvm.kernels.heads import panels_of
from edgevit.backends.tvm.kernels.neon_head import NeonHead

SIGNED, TINY = 127, 1e-20


class Packing(NeonHead):
    """Packs a head."""

    def pack(self) -> None:
        self.pack_rows()
        self.pack_values()

    def pack_rows(self) -> None:
        """Quantize keys and queries, in blocks."""
        code, work, width = self.code, self.work, pad(self.heads.stride, self.dot.depth) // WORD
        key, query = self.heads.key, self.heads.query
        for panel in panels_of(key.rows, self.tile, LANES):
            columns = panel.vectors * LANES
            with each(code, self.threads, panel.count, panel.there(self.keys)) as index:
                first = panel.first + index * columns
                base = work.keys.offset + first * width
                with code.loop(columns // self.together) as group:
                    within = group * self.together
                    row = code.let(integer(first) + within)

                    def place(word: Any, base: Any = base, within: Any = within, columns: int = columns) -> Any:
                        step = tirx.floordiv(integer(word), integer(self.words))
                        return base + (step * columns + within) * self.words

                    scales, lengths = self._pack(key, row, place, self.there)
                    self.keep(work.key_scale, row, scales)
                    self.keep(work.key_length, row, lengths * scales)
        groups = row_units(query.rows, Tile(rows=self.together, vectors=1))
        with each(code, self.threads, groups, units_of(self.queries, self.together)) as group:
            row = code.let(group * integer(self.together))
            there = query.rows if self.queries is None else self.queries
            scales, lengths = self._pack(query, row, lambda word: word_of(work.query, self.together, row, word), there)
            self.keep(work.query_scale, row, scales)
            self.keep(work.query_length, row, lengths)

    def _pack(self, source: Place, row: Any, place: Callable[[Any], Any], there: Any) -> tuple[Any, Any]:
        """Quantize the rows of a block, `place(word)` to where; return their scales and the integers' lengths.

        A row that is none is the last one again.
        """
        code, memory = self.code, self.memory
        vectors = self.heads.stride // LANES
        bases, inverses, scales = [], [], []
        for r in range(self.together):
            index = tirx.min(row + r, integer(there) - 1)
            base = code.let(source.offset + index * source.stride + self.column)
            largest = self._largest([code.let(load_vector(memory, base + v * LANES, LANES)) for v in range(vectors)])
            top = code.let(tirx.max(neon("float32", "fmaxv.f32.v4f32", largest), number(TINY)))
            bases.append(base)
            scales.append(code.let(top * number(1 / SIGNED)))
            inverses.append(code.let(splat(number(SIGNED) / top, LANES)))
        squares = code.register(tirx.Broadcast(integer(0), LANES))

        def block(first: Any, count: int) -> None:
            made = []
            for base, inverse in zip(bases, inverses, strict=True):
                for v in range(self.words):
                    if v < count:
                        x = load_vector(memory, base + (first + v) * LANES, LANES)
                        made.append(round_to_int(x * inverse))
                    else:
                        made.append(tirx.Broadcast(integer(0), LANES))
            a, b, c, d = made
            packed = code.let(quartered(halved(a, b), halved(c, d)))
            squares.set(neon(INT32, "sdot.v4i32.v16i8", squares.value, packed, packed))
            code.store_vector(memory, place(first), bits("float32x4", packed), BLOCK)

        full, rest = divmod(vectors, self.words)
        with code.loop(full) as index:
            block(index * self.words, self.words)
        if rest:
            block(full * self.words, rest)
        empty = tirx.Broadcast(number(0.0), LANES)
        for word in range(
            full * self.words + (self.words if rest else 0), pad(self.heads.stride, self.dot.depth) // WORD, self.words
        ):
            code.store_vector(memory, place(word), empty, BLOCK)
        total = squares.value
        if self.together == 2:
            total = neon(INT32, "addp.v4i32", total, total)
        vector = tirx.Shuffle(scales, [integer(i) for i in range(self.together)])
        lengths = tirx.sqrt(to_float(code.let(total), LANES))
        if self.together == 2:
            lengths = lanes_of(code.let(lengths), 0, 1)
        return code.let(vector), code.let(lengths)

    def _largest(self, vectors: list[Any]) -> Any:
        """Return the largest absolute value of every lane."""
        found = [tirx.max(x, splat(0.0, LANES) - x) for x in vectors]
        while len(found) > 1:
            pairs = [self.code.let(tirx.max(a, b)) for a, b in zip(found[::2], found[1::2], strict=False)]
            found = [*pairs, *found[len(found) // 2 * 2 :]]
        return self.code.let(found[0])

    def pack_values(self) -> None:
        """Quantize values per column; tokens are the depth."""
        code, value = self.code, self.heads.value
        for panel in panels_of(self.heads.stride, self.tile, LANES):
            columns = panel.vectors * LANES
            with each(code, self.threads, panel.count) as index:
                first = panel.first + index * columns
                source = value.offset + self.column + first
                inverses = self._value_scales(source, first, panel.vectors)
                base = self.work.values.offset + first * (self.work.depth // WORD)
                self._value_panel(source, first, base, columns, inverses)

    def _value_scales(self, source: Any, first: Any, vectors: int) -> list[Any]:
        code, value, work = self.code, self.heads.value, self.work
        largest = [code.register(splat(0.0, LANES)) for _ in range(vectors)]

        def token(k: Any) -> None:
            for v in range(vectors):
                x = code.let(load_vector(self.memory, source + k * value.stride + v * LANES, LANES))
                largest[v].set(tirx.max(largest[v].value, tirx.max(x, splat(0.0, LANES) - x)))

        unrolled(self.code, self.there, token)
        inverses = []
        for v in range(vectors):
            top = code.let(tirx.max(largest[v].value, splat(TINY, LANES)))
            place = work.value_scale.offset + first + v * LANES
            code.store_vector(self.memory, place, top * splat(1 / SIGNED, LANES), LANES)
            inverses.append(code.let(splat(float(SIGNED), LANES) / top))
        return inverses

    def _value_panel(self, source: Any, first: Any, base: Any, columns: int, inverses: list[Any]) -> None:
        code, value, work = self.code, self.heads.value, self.work
        totals = [code.register(tirx.Broadcast(integer(0), LANES)) for _ in inverses]
        ones, deep = constant(np.ones(16, np.int8)), WORD * self.words
        order = [constant(table) for table in _columns_first(self.words)]

        def units(unit: Any, count: int) -> None:
            """So many tokens, the depth of a block, of all columns; those that are missing are 0."""
            for v, inverse in enumerate(inverses):
                tokens = []
                for k in range(deep):
                    x: Any = tirx.Broadcast(integer(0), LANES)
                    if k < count:
                        row = source + (unit * deep + k) * value.stride + v * LANES
                        x = round_to_int(load_vector(self.memory, row, LANES) * inverse)
                    tokens.append(x)
                fours = [
                    code.let(quartered(halved(a, b), halved(c, d)))
                    for a, b, c, d in (tokens[i : i + 4] for i in range(0, deep, 4))
                ]
                at = base + unit * (columns * self.words) + v * (LANES * self.words)
                for i, table in enumerate(order):
                    packed = code.let(neon(INT8, f"tbl{len(fours)}.v16i8", *fours, table))
                    code.store_vector(self.memory, at + i * BLOCK, bits("float32x4", packed), BLOCK)
                # Lanes of sdot are columns where four tokens are a word.
                for four in fours:
                    turned = neon(INT8, "tbl1.v16i8", four, constant(_columns_first(1)[0]))
                    totals[v].set(neon(INT32, "sdot.v4i32.v16i8", totals[v].value, turned, ones))

        full = whole(self.there, deep)
        with code.loop(full) as unit:
            units(unit, deep)
        if self.keys is None:
            if self.there % deep:
                units(full, self.there % deep)
        else:
            for count in range(1, deep):
                with code.when(self.there - full * deep == integer(count)):
                    units(full, count)
        begun = units_of(self.there, deep)
        with code.loop(self.steps() * (self.dot.depth // deep) - begun) as rest:
            at = base + (begun + rest) * (columns * self.words)
            with code.loop(columns * self.words // BLOCK) as i:
                code.store_vector(self.memory, at + i * BLOCK, splat(0.0, BLOCK), BLOCK)
        for v, total in enumerate(totals):
            start = total.value * tirx.Broadcast(integer(SIGNED + 1), LANES)
            place = work.value_start.offset + first + v * LANES
            code.store_vector(self.memory, place, bits("float32x4", start), LANES)


def _columns_first(words: int) -> list[np.ndarray]:
    """Return tables that turn `4 * words` tokens of four columns, four tokens a register, into columns of tokens."""
    deep = WORD * words
    order = np.array([token // 4 * 16 + token % 4 * 4 + column for column in range(LANES) for token in range(deep)])
    return [order[i : i + 16].astype(np.int8) for i in range(0, len(order), 16)]
