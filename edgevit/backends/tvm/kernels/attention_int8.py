"""Attention of all heads in int8, a kernel like `attention.attention`, with its scales found while it runs.

Queries and keys have a scale per token, values one per column; exponentials of scores, 0 to 1, are integers of 255
steps, and their sum is the integers' own. Both products are exact in int32; scores and softmax are float.

Exponentials are cut off after adding another fraction in every lane. With one half everywhere the many small ones
beside a large one would all be lost; so they are lost in some lanes only, as many as is right on average. In DeiT-Ti
and ViT-Ti that makes what attention gives 3 dB more exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    LOG2_E,
    Code,
    bits,
    buffer,
    integer,
    lane_max,
    lane_sum,
    lanes_of,
    literal,
    load,
    load_lanes,
    load_vector,
    number,
    splat,
    to_float,
    whole,
)
from edgevit.backends.tvm.codegen.dots import Dot, Inner, Maddubs
from edgevit.backends.tvm.codegen.integers import (
    LOW,
    STEPS,
    WORD,
    Matrix,
    store_integers,
)
from edgevit.backends.tvm.codegen.layout import Alive, Arena, Place
from edgevit.backends.tvm.codegen.narrow import put_vectors, rounded
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    Part,
    each,
    parts,
    row_tiles,
    row_units,
    shared,
    team,
    units_of,
)
from edgevit.backends.tvm.kernels.attention import (
    Heads,
    Panel,
    attention_threads,
    block_rows,
    mask,
    panels_of,
    rows_of,
)
from edgevit.backends.tvm.kernels.common import alive_rows

SIGNED = 127
TINY = 1e-20
# 2^f for 0 <= f <= 1, highest power first: relative error 1.1e-4, a 40th of a step, and exact at both ends.
POWER = (0.07826796919107437, 0.22630767524242401, 0.69542437791824341, 1.0)
HALF = 128  # what is unsigned elsewhere is shifted by where values are int8


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One head's right side, packed as `Dot.pack` does it; per column a scale and an int32 that its sums start from."""

    words: Place
    scale: Place
    start: Place
    depth: int


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """One head's keys and values; integers, scores and scales of one block of rows.

    Of the latter each thread has a copy, `distance` behind the one before.
    """

    keys: Packed
    values: Packed
    query: Place
    scale: Place
    scores: Place
    shares: Place
    inverse: Place
    distance: int

    def of(self, part: Part) -> Scratch:
        """Return the places of one thread."""
        own = ("query", "scale", "scores", "shares", "inverse")
        return replace(self, **{name: getattr(self, name).moved(part.index * self.distance) for name in own})


def scratch(arena: Arena, heads: Heads, dot: Dot, tile: Tile, isa: Isa) -> Scratch:
    """Return places for one head at a time."""
    tokens, block, lanes = heads.key.rows, block_rows(isa, heads, tile), isa.lanes

    def packed(columns: int, depth: int) -> Packed:
        columns, depth = pad(columns, lanes), pad(depth, dot.depth)
        return Packed(
            words=arena.place(1, columns * depth // WORD),
            scale=arena.place(1, columns),
            start=arena.place(1, columns),
            depth=depth,
        )

    keys, values = packed(tokens, heads.stride), packed(heads.stride, tokens)
    columns, begin = pad(tokens, lanes), arena.mark()
    own = {
        "query": arena.place(block, keys.depth // WORD),
        "scale": arena.place(1, block),
        "scores": arena.place(block, columns),
        "shares": arena.place(block, max(columns, values.depth) // WORD),
        "inverse": arena.place(1, block),
    }
    distance = arena.repeat(begin, parts(attention_threads(isa, heads), -(-heads.query.rows // block)))
    return Scratch(keys=keys, values=values, **own, distance=distance)


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

    `bias` has a value for every key, in powers of 2, and `attention.MASKED` in all columns that are none. `alive` is
    as in `attention.attention`.
    """
    code = Code()
    memory, values = buffer("arena", arena), buffer("weights", blob)
    rows, block = heads.query.rows, Tile(rows=work.scores.rows, vectors=tile.vectors)
    threads = attention_threads(isa, heads)
    given, keys = alive_rows(code, alive, heads.key.rows)
    queries = keys if rows == heads.key.rows else None
    with team(code, threads) as phase, code.loop(heads.count) as head:
        kernel = Attention(code, memory, values, heads, head * heads.stride, target, work, dot, tile, threads, bias)
        kernel.keys, kernel.queries = keys, queries
        with phase():
            kernel.pack_keys()
            kernel.pack_values()
        with phase(), shared(code, threads, row_units(rows, block), units_of(queries, block.rows)) as part:
            kernel.work = work.of(part)
            row_tiles(code, rows, block, kernel.rows, part)
    return code.function([memory, values, *given])


def instructions(dot: Dot) -> int:
    """How many multiplying instructions the code has, at least: one tile of one row and vector for either product."""
    return 2 * dot.count(Tile(rows=1, vectors=1))


class Attention:
    """One head, whose columns start at `column`; `keys` and `queries` are how many of them exist (None: all)."""

    keys: Any = None
    queries: Any = None

    def __init__(
        self,
        code: Code,
        memory: Any,
        values: Any,
        heads: Heads,
        column: Any,
        target: Matrix,
        work: Scratch,
        dot: Dot,
        tile: Tile,
        threads: int,
        bias: Place | None,
    ) -> None:
        self.bias = bias
        self.code, self.memory, self.values, self.heads, self.column = code, memory, values, heads, column
        self.target, self.work, self.dot, self.tile, self.lanes = target, work, dot, tile, dot.lanes
        self.threads = threads
        # Sums of two products by vpmaddubsw fit 16 bits if weights have 7.
        self.limit = SIGNED // 2 if isinstance(dot, Maddubs) else SIGNED
        self.unsigned = dot.stored == "uint8"

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
            start = bits("float32", lane_sum(code, total.value, lanes) * integer(-HALF))
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
        zero = tirx.Broadcast(integer(HALF if self.unsigned else 0), lanes)
        with code.loop(rows) as r:
            source = query.offset + (row + r) * query.stride + self.column
            largest = self._largest(vectors, lambda v: source + v * lanes)
            top = code.let(tirx.max(lane_max(code, largest, lanes), number(TINY)))
            # Scores for powers of 2.
            code.store(self.memory, work.scale.offset + r, top * number(LOG2_E / SIGNED))
            inverse = code.let(number(SIGNED) / top)
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
                steps = code.let(tirx.Cast(f"int32x{lanes}", _power(code, x, lanes) + up))
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


def thresholds(lanes: int) -> list[float]:
    """What is added before fractions are cut off: spread evenly over 0 to 1, neighbours far apart (bits reversed)."""
    size = lanes.bit_length() - 1
    return [(int(f"{lane:0{size}b}"[::-1], 2) + 0.5) / lanes for lane in range(lanes)]


def _power(code: Code, x: Any, lanes: int) -> Any:
    """Return 255 * 2^x for x <= 0, relative error as in `POWER`; x is clamped to -126."""
    x = code.let(tirx.max(x, splat(-126.0, lanes)))
    whole = code.let(tirx.floor(x))
    f = code.let(x - whole)
    value = splat(STEPS * POWER[0], lanes)
    for coefficient in POWER[1:]:
        value = value * f + splat(STEPS * coefficient, lanes)
    exponent = tirx.Cast(f"int32x{lanes}", whole) * tirx.Broadcast(integer(1 << 23), lanes)
    return bits(f"float32x{lanes}", bits(f"int32x{lanes}", value) + exponent)


def _words(count: int) -> str:
    return f"float32x{count}" if count > 1 else "float32"
