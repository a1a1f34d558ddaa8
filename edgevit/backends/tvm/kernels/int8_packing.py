"""Keys and values of one head as int8, packed as `Dot.pack` does it, with scales found on the way.

neon_packing.py has those of NEON, where rows share blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    bits,
    integer,
    lane_max,
    lane_sum,
    lanes_of,
    load_vector,
    number,
    splat,
    whole,
)
from edgevit.backends.tvm.codegen.dots import Dot, Maddubs
from edgevit.backends.tvm.codegen.integers import (
    STEPS,
    WORD,
    Matrix,
)
from edgevit.backends.tvm.codegen.layout import Arena, Place
from edgevit.backends.tvm.codegen.narrow import rounded
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    Part,
    each,
    parts,
    units_of,
)
from edgevit.backends.tvm.kernels.heads import (
    Head,
    Heads,
    attention_threads,
    block_rows,
    packed_heads,
    panels_of,
    repeated,
)

SIGNED = 127
TINY = 1e-20
HALF = 128  # what is unsigned elsewhere is shifted by where values are int8


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One head's right side, packed as `Dot.pack` does it; per column a scale and an int32 that its sums start from."""

    words: Place
    scale: Place
    start: Place
    depth: int

    def moved(self, by: Any) -> Packed:
        """Return the same so much further on."""
        return replace(self, words=self.words.moved(by), scale=self.scale.moved(by), start=self.start.moved(by))


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """One head's keys and values; integers, scores and scales of one block of rows.

    Of the latter each thread has a copy, `distance` behind the one before; of the former each head has one, `apart`
    behind the one before (0: all of them have the same). `tops` are the largest values of every column, a row for every
    part of the tokens, where threads find them together.
    """

    keys: Packed
    values: Packed
    query: Place
    scale: Place
    scores: Place
    shares: Place
    inverse: Place
    distance: int
    apart: int = 0
    tops: Place | None = None

    def head(self, index: Any) -> Scratch:
        """Return the places of one head."""
        by = index * self.apart
        tops = None if self.tops is None else self.tops.moved(by)
        return replace(self, keys=self.keys.moved(by), values=self.values.moved(by), tops=tops)

    def of(self, part: Part) -> Scratch:
        """Return the places of one thread."""
        own = ("query", "scale", "scores", "shares", "inverse")
        return replace(self, **{name: getattr(self, name).moved(part.index * self.distance) for name in own})


def scratch(arena: Arena, heads: Heads, dot: Dot, tile: Tile, isa: Isa) -> Scratch:
    """Return places for one head at a time, or for all where several threads attend."""
    tokens, block, lanes = heads.key.rows, block_rows(isa, heads, tile), isa.lanes

    def packed(columns: int, depth: int) -> Packed:
        columns, depth = pad(columns, lanes), pad(depth, dot.depth)
        return Packed(
            words=arena.place(1, columns * depth // WORD),
            scale=arena.place(1, columns),
            start=arena.place(1, columns),
            depth=depth,
        )

    first = arena.mark()
    keys, values = packed(tokens, heads.stride), packed(heads.stride, tokens)
    apart = repeated(arena, first, packed_heads(isa, heads))
    columns, begin = pad(tokens, lanes), arena.mark()
    own = {
        "query": arena.place(block, keys.depth // WORD),
        "scale": arena.place(1, block),
        "scores": arena.place(block, columns),
        "shares": arena.place(block, max(columns, values.depth) // WORD),
        "inverse": arena.place(1, block),
    }
    distance = arena.repeat(begin, parts(attention_threads(isa, heads), -(-heads.query.rows // block)))
    return Scratch(keys=keys, values=values, **own, distance=distance, apart=apart)


class Packing(Head):
    """Packs a head: keys have a scale per token, values one per column."""

    def __init__(
        self,
        code: Code,
        memory: Any,
        values: Any,
        heads: Heads,
        column: Any,
        target: Matrix,
        work: Scratch,
        tile: Tile,
        dot: Dot,
        threads: int,
        bias: Place | None,
    ) -> None:
        super().__init__(code, memory, values, heads, column, target, work, tile, dot.lanes, threads, bias)
        self.dot = dot
        # Sums of two products by vpmaddubsw fit 16 bits if the right side has 7, sums of four if both have.
        coarse, both = isinstance(dot, Maddubs), isinstance(dot, Maddubs) and dot.joined > 1
        self.limit = SIGNED // 2 if coarse else SIGNED
        self.most, self.half, self.steps = (SIGNED // 2, HALF // 2, STEPS // 2) if both else (SIGNED, HALF, STEPS)
        self.unsigned = dot.stored == "uint8"

    def pack(self) -> None:
        self.pack_keys()
        self.pack_values()

    def pack_keys(self) -> None:
        """Every token's key is a column; columns of padding are 0, and so is the depth's."""
        code, key, keys, lanes = self.code, self.heads.key, self.work.keys, self.lanes
        for panel in self._panels(key.rows):
            columns = panel.vectors * lanes
            with each(code, self.threads, panel.count, panel.there(self.keys)) as index:
                first = panel.first + index * columns
                used = panel.used_of(code, first, self.keys)
                base = keys.words.offset + first * (keys.depth // WORD)
                with code.loop(used) as k:
                    self._pack_key(key.offset + (first + k) * key.stride + self.column, first + k, base, k, columns)
                with code.loop(columns - used) as k:
                    self._no_words(base, used + k, columns, 0, keys.depth // WORD)
                    for place in (keys.scale, keys.start):
                        code.store(self.memory, place.offset + first + used + k, number(0.0))

    def _pack_key(self, source: Any, token: Any, base: Any, place: Any, columns: int) -> None:
        code, keys, lanes = self.code, self.work.keys, self.lanes
        vectors, words = self.heads.stride // lanes, lanes // WORD
        largest = self._largest(vectors, lambda v: source + v * lanes)
        top = code.let(tirx.max(lane_max(code, largest, lanes), number(TINY)))
        code.store(self.memory, keys.scale.offset + token, top * number(1 / self.limit))
        inverse = code.let(number(self.limit) / top)
        total = code.register(tirx.Broadcast(integer(0), lanes))
        with code.loop(vectors) as v:
            x = load_vector(self.memory, source + v * lanes, lanes) * splat(inverse, lanes)
            steps = code.let(self._rounded(x))
            total.set(total.value + steps)
            packed = code.let(bits(_words(words), tirx.Cast(f"int8x{lanes}", steps)))
            for i in range(words):
                word = lanes_of(packed, i) if words > 1 else packed
                code.store(self.memory, self._word(base, place, v * words + i, columns), word)
        self._no_words(base, place, columns, vectors * words, keys.depth // WORD)
        start = number(0.0)
        if self.unsigned:
            start = bits("float32", lane_sum(code, total.value, lanes) * integer(-self.half))
        code.store(self.memory, keys.start.offset + token, start)

    def pack_values(self) -> None:
        """Tokens are the depth; 4 of them are a word of every column."""
        code, value, values, lanes = self.code, self.heads.value, self.work.values, self.lanes
        for panel in self._panels(self.heads.stride):
            columns = panel.vectors * lanes
            with each(code, self.threads, panel.count) as index, code.loop(panel.vectors) as v:
                first = panel.first + index * columns
                source = value.offset + self.column + first + v * lanes
                base = values.words.offset + first * (values.depth // WORD)
                self._pack_value(source, first + v * lanes, base, v * lanes, columns)

    def _pack_value(self, source: Any, column: Any, base: Any, place: Any, columns: int) -> None:
        """One vector of columns."""
        code, value, values, lanes = self.code, self.heads.value, self.work.values, self.lanes
        rows = value.rows if self.keys is None else self.keys
        largest = self._largest(rows, lambda k: source + k * value.stride)
        top = code.let(tirx.max(largest, splat(TINY, lanes)))
        code.store_vector(self.memory, values.scale.offset + column, top * splat(1 / self.limit, lanes), lanes)
        inverse = code.let(splat(float(self.limit), lanes) / top)
        total = code.register(tirx.Broadcast(integer(0), lanes))

        def word(first: Any, count: int, index: Any) -> None:
            packed = None
            for i in range(count):
                x = load_vector(self.memory, source + (first + i) * value.stride, lanes)
                steps = code.let(self._rounded(x * inverse))
                total.set(total.value + steps)
                byte = tirx.bitwise_and(steps, tirx.Broadcast(integer(255), lanes)) if i < WORD - 1 else steps
                byte = byte * tirx.Broadcast(integer(1 << (8 * i)), lanes) if i else byte
                packed = byte if packed is None else packed + byte
            self._store_words(base, place, index, columns, bits(f"float32x{lanes}", packed))

        full = whole(rows, WORD)
        with code.loop(full) as t:
            word(t * WORD, WORD, t)
        if self.keys is None:
            if rows % WORD:
                word(full * WORD, rows % WORD, full)
        else:
            for count in range(1, WORD):
                with code.when(rows - full * WORD == integer(count)):
                    word(full * WORD, count, full)
        begun = units_of(rows, WORD)
        with code.loop(self._steps(values) * (self.dot.depth // WORD) - begun) as t:
            self._store_words(base, place, begun + t, columns, splat(0.0, lanes))
        start = splat(0.0, lanes)
        if not self.unsigned:
            start = bits(f"float32x{lanes}", total.value * tirx.Broadcast(integer(HALF), lanes))
        code.store_vector(self.memory, values.start.offset + column, start, lanes)

    def _steps(self, right: Packed) -> Any:
        """Return the steps of a product's depth, which are tokens in the second."""
        if self.keys is None or right is not self.work.values:
            return right.depth // self.dot.depth
        return units_of(self.keys, self.dot.depth)

    def _panels(self, columns: int) -> Any:
        return panels_of(columns, self.tile, self.lanes)

    def _largest(self, count: Any, place: Callable[[Any], Any]) -> Any:
        """Return the largest absolute value of every lane over `count` vectors."""
        code, lanes = self.code, self.lanes
        largest = code.register(splat(0.0, lanes))
        with code.loop(count) as i:
            x = load_vector(self.memory, place(i), lanes)
            largest.set(tirx.max(largest.value, tirx.abs(x)))
        return code.let(largest.value)

    def _rounded(self, value: Any) -> Any:
        if self.unsigned:
            return rounded(value, self.lanes)
        return tirx.Cast(f"int32x{self.lanes}", tirx.nearbyint(value))

    def _word(self, base: Any, column: Any, index: Any, columns: int) -> Any:
        """Return where a word of the depth lies in a packed panel."""
        unit = self.dot.unit // WORD
        if unit == 1:
            return base + index * columns + column
        unit_of, rest = (f(integer(index), integer(unit)) for f in (tirx.floordiv, tirx.floormod))
        return base + (unit_of * columns + column) * unit + rest

    def _store_words(self, base: Any, column: Any, index: Any, columns: int, words: Any) -> None:
        """One word of a vector of columns."""
        if self.dot.unit == WORD:
            self.code.store_vector(self.memory, self._word(base, column, index, columns), words, self.lanes)
            return
        words = self.code.let(words)
        for lane in range(self.lanes):
            self.code.store(self.memory, self._word(base, column + lane, index, columns), lanes_of(words, lane))

    def _no_words(self, base: Any, column: Any, columns: int, begin: int, end: int) -> None:
        with self.code.loop(end - begin) as index:
            self.code.store(self.memory, self._word(base, column, begin + index, columns), number(0.0))


def _words(count: int) -> str:
    return f"float32x{count}" if count > 1 else "float32"
