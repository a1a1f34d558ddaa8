"""Attention of all heads in int8 where all scores of a query fit the vector registers: AVX-512, few hundred tokens.

Computes what `attention_int8` does, in one pass: a few query rows are multiplied with all keys at once, so that their
scores are scaled, and the largest of them is found, where they were summed up; what is stored of them is as much as the
registers hold, until the next few rows. Keys are packed by transposing blocks of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    LOG2_E,
    Code,
    Register,
    bits,
    instruction,
    integer,
    lane_max,
    lane_sum,
    literal,
    load,
    load_vector,
    number,
    pairwise,
    smaller,
    splat,
    to_float,
    whole,
)
from edgevit.backends.tvm.codegen.dots import Dot, _Spread
from edgevit.backends.tvm.codegen.integers import STEPS, WORD, Matrix
from edgevit.backends.tvm.codegen.layout import Alive, Arena, Place
from edgevit.backends.tvm.codegen.narrow import GROUP, columns_of, narrowed, rounded
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    Part,
    parts,
    pieces,
    row_tiles,
    shared,
    units_of,
)
from edgevit.backends.tvm.kernels.attention_int8 import POWER, Attention, thresholds
from edgevit.backends.tvm.kernels.heads import (
    Heads,
    attend,
    attention_threads,
    block_rows,
    mask,
    packed_heads,
    repeated,
)
from edgevit.backends.tvm.kernels.int8_packing import SIGNED, TINY, Packed, Scratch
from edgevit.backends.tvm.kernels.pack_rows import transposed

LANES = 16
MOST_ROWS = 8
ONES, HALVES = 0x01010101, -0x7F7F7F80  # four bytes of 1, four of 128
EVERY, USUAL = -1, 4  # all lanes; rounding as the processor is set
DOWN = 9  # VREDUCE: less the largest integer that is not above, no exceptions


def fits(isa: Isa, heads: Heads, dot: Dot) -> bool:
    """Return whether a row of scores fits the registers, beside what multiplies it, and heads are whole vectors."""
    vectors = pad(heads.key.rows, LANES) // LANES
    whole = heads.stride % (GROUP * LANES) == 0
    return isa.lanes == LANES and dot.stored == "uint8" and whole and vectors + 2 < isa.registers


def score_rows(isa: Isa, vectors: int) -> int:
    """Return query rows whose scores fit the registers together, each with a broadcast, and one column of keys."""
    return max(min((isa.registers - 2) // (vectors + 1), MOST_ROWS), 1)


def widths(most: int) -> tuple[int, ...]:
    """Return the numbers of vectors of keys that there is code for where keys are known only when it runs."""
    return tuple(sorted({-(-most * quarters // 4) for quarters in (2, 3, 4)}))


def _least_fitting(wanted: Any, there_are: tuple[int, ...]) -> Any:
    found: Any = integer(there_are[-1])
    for width in reversed(there_are[:-1]):
        found = tirx.Select(wanted <= integer(width), integer(width), found)
    return found


def scratch(arena: Arena, heads: Heads, dot: Dot, tile: Tile, isa: Isa) -> Scratch:
    """Return places as `int8_packing.scratch` does; of scores as much as registers hold."""
    tokens, block = heads.key.rows, block_rows(isa, heads, tile)
    columns, depth = pad(tokens, LANES), pad(tokens, dot.depth)

    def packed(columns: int, depth: int) -> Packed:
        words = arena.place(1, columns * depth // WORD)
        return Packed(words=words, scale=arena.place(1, columns), start=arena.place(1, columns), depth=depth)

    first = arena.mark()
    keys, values = packed(columns, heads.stride), packed(heads.stride, depth)
    threads = attention_threads(isa, heads)
    tops = arena.place(parts(threads, units_of(tokens, WORD)), heads.stride)
    apart = repeated(arena, first, packed_heads(isa, heads))
    begin = arena.mark()
    own = {
        # Keys wait there too while they are packed, a block at a time.
        "query": arena.place(max(block, LANES), heads.stride // WORD),
        "scale": arena.place(1, block),
        "scores": arena.place(1, isa.registers * LANES),
        "shares": arena.place(block, pad(columns, GROUP * LANES) // WORD),
        "inverse": arena.place(1, block),
    }
    distance = arena.repeat(begin, parts(threads, -(-heads.query.rows // block)))
    return Scratch(keys=keys, values=values, tops=tops, **own, distance=distance, apart=apart)


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
    """Return what `attention_int8.attention` does; `tile` is that of the product with the values."""

    def head(code: Code, memory: Any, values: Any, column: Any) -> InRegisters:
        threads = attention_threads(isa, heads)
        made = InRegisters(code, memory, values, heads, column, target, work, tile, dot, threads, bias)
        made.isa = isa
        return made

    block = Tile(rows=work.shares.rows, vectors=tile.vectors)
    return attend(isa, arena, blob, heads, block, head, alive, apart=work.apart > 0, measured=True)


class InRegisters(Attention):
    """One head; of keys, so many `vectors` are multiplied with."""

    isa: Isa
    vectors: Any

    def plan(self) -> None:
        most = self.work.keys.scale.width // LANES
        there = None if self.keys is None else units_of(self.keys, LANES)
        self.vectors = most if there is None else self.code.let(_least_fitting(there, widths(most)))

    def pack_keys(self) -> None:
        most = self.work.keys.scale.width // LANES
        with shared(self.code, self.threads, most, None if self.keys is None else self.vectors) as part:
            self.work = self.work.of(part)
            with self.code.loop(part.end - part.first) as index:
                self.pack_block(part.first + index)

    def pack_block(self, block: Any) -> None:
        """Pack a block of keys as columns; behind the last one come copies of it, whose scores are masked."""
        code, key, keys, query = self.code, self.heads.key, self.work.keys, self.work.query
        last = (key.rows if self.keys is None else self.keys) - 1
        with code.loop(LANES) as i:
            token = code.let(integer(smaller(block * LANES + i, last)))
            column = block * LANES + i
            source = key.offset + token * key.stride + self.column
            steps = self._row_steps(source, self.limit, keys.scale.offset + column, 1 / self.limit)
            for index, words in enumerate(steps):
                code.store_vector(self.memory, query.offset + i * query.stride + index * LANES, words, LANES)
        columns = keys.scale.width
        total = code.register(tirx.Broadcast(integer(0), LANES))
        halves = tirx.Broadcast(integer(HALVES), LANES)
        for first in range(0, keys.depth // WORD, LANES):
            rows = [load_vector(self.memory, query.offset + i * query.stride + first, LANES) for i in range(LANES)]
            for index, words in enumerate(transposed(code, rows)):
                place = keys.words.offset + (first + index) * columns + block * LANES
                code.store_vector(self.memory, place, words, LANES)
                total.set(self._add(total.value, halves, words))
        start = tirx.Broadcast(integer(0), LANES) - total.value
        code.store_vector(self.memory, keys.start.offset + block * LANES, bits(f"float32x{LANES}", start), LANES)

    def measure(self) -> None:
        """Find the largest value of every column among the tokens of a part, the same that it packs."""
        code, value = self.code, self.heads.value
        rows = value.rows if self.keys is None else self.keys
        with self._words(rows) as part:
            begin = part.first * WORD
            for first in range(0, self.heads.stride // LANES, GROUP):
                source = value.offset + self.column + first * LANES
                largest = [code.register(splat(TINY, LANES)) for _ in range(GROUP)]
                with code.loop(smaller(part.end * WORD, rows) - begin) as row:
                    for v, cell in enumerate(largest):
                        found = load_vector(self.memory, source + (begin + row) * value.stride + v * LANES, LANES)
                        cell.set(tirx.max(cell.value, tirx.abs(found)))
                for v, cell in enumerate(largest):
                    code.store_vector(self.memory, self._top(part.index, first + v), cell.value, LANES)

    def pack_values(self) -> None:
        """Pack four vectors of columns together, a part of the tokens in every thread: those that it computed."""
        rows = self.heads.value.rows if self.keys is None else self.keys
        with self._words(rows) as part:
            for first in range(0, self.heads.stride // LANES, GROUP):
                self._pack_columns(first, rows, part)

    def _words(self, rows: Any) -> AbstractContextManager[Part]:
        """Share out the words that tokens are packed into."""
        most = units_of(self.heads.value.rows, WORD)
        return shared(self.code, self.threads, most, None if self.keys is None else units_of(rows, WORD))

    def _top(self, part: Any, vector: int) -> Any:
        assert self.work.tops is not None
        return self.work.tops.offset + part * self.work.tops.stride + vector * LANES

    def _pack_columns(self, first: int, rows: Any, part: Part) -> None:
        """Pack a part of the tokens of four vectors of columns, from number `first` on."""
        code, value = self.code, self.heads.value
        source = value.offset + self.column + first * LANES
        inverses = self._scales(first, part)

        def words(row: Any, count: int, place: Any) -> None:
            """A word of each column: of so many rows, and zeros behind them."""
            none = tirx.Broadcast(integer(0), LANES)
            for v, inverse in enumerate(inverses):
                found = [
                    load_vector(self.memory, source + (row + i) * value.stride + v * LANES, LANES) for i in range(count)
                ]
                steps = [code.let(rounded(x * inverse, LANES)) for x in found]
                packed = code.let(columns_of(code, [*steps, *[none] * (WORD - count)]))
                code.store_vector(self.memory, self._value_place(first + v, place), packed, LANES)

        full = whole(rows, WORD)

        def rest() -> None:
            for count in range(1, WORD):
                if self.keys is None:
                    if rows % WORD == count:
                        words(full * WORD, count, full)
                else:
                    with code.when(rows - full * WORD == integer(count)):
                        words(full * WORD, count, full)

        pieces(code, part, full, lambda index: words(index * WORD, WORD, index), rest)

    def _scales(self, first: int, part: Part) -> list[Any]:
        """Return what four vectors of columns are multiplied with; one thread stores their scales."""
        code, values = self.code, self.work.values
        tops = [
            pairwise(
                code, tirx.max, [load_vector(self.memory, self._top(i, first + v), LANES) for i in range(part.count)]
            )
            for v in range(GROUP)
        ]
        with code.when(part.index == integer(0)) if part.count > 1 else nullcontext():
            for v, top in enumerate(tops):
                place = values.scale.offset + (first + v) * LANES
                code.store_vector(self.memory, place, top * splat(1 / self.limit, LANES), LANES)
                code.store_vector(self.memory, values.start.offset + (first + v) * LANES, splat(0.0, LANES), LANES)
        return [code.let(splat(float(self.limit), LANES) / top) for top in tops]

    def _value_place(self, vector: int, word: Any) -> Any:
        """Return where a word of a vector of columns lies among the packed panels."""
        values, width = self.work.values, self.tile.vectors
        panel, within = divmod(vector, width)
        there = min(width, self.heads.stride // LANES - panel * width)
        base = values.words.offset + panel * width * LANES * (values.depth // WORD)
        return base + (word * there + within) * LANES

    def _row_steps(self, source: Any, limit: int, place: Any, factor: float) -> list[Any]:
        """Return a token's head as int8 up to a limit, in words; store its largest value times `factor`."""
        code = self.code
        found = [
            code.let(load_vector(self.memory, source + v * LANES, LANES)) for v in range(self.heads.stride // LANES)
        ]
        largest = pairwise(code, tirx.max, [tirx.abs(x) for x in found])
        top = code.let(tirx.max(lane_max(code, largest, LANES), number(TINY)))
        code.store(self.memory, place, top * number(factor))
        inverse = code.let(splat(number(limit) / top, LANES))
        steps = [code.let(rounded(x * inverse, LANES)) for x in found]
        return [code.let(narrowed(code, steps[i : i + GROUP], "int8")) for i in range(0, len(steps), GROUP)]

    def _queries(self, row: Any, rows: Any) -> None:
        code, query, work = self.code, self.heads.query, self.work
        with code.loop(rows) as r:
            source = query.offset + (row + r) * query.stride + self.column
            # Scores for powers of 2.
            steps = self._row_steps(source, SIGNED, work.scale.offset + r, LOG2_E / SIGNED)
            for index, words in enumerate(steps):
                moved = tirx.bitwise_xor(bits(f"int32x{LANES}", words), tirx.Broadcast(integer(HALVES), LANES))
                place = work.query.offset + r * work.query.stride + index * LANES
                code.store_vector(self.memory, place, bits(f"float32x{LANES}", moved), LANES)

    def rows(self, row: Any, block: Tile) -> None:
        there = self._there(row, block.rows)
        self._queries(row, block.rows if there is None else there)
        if isinstance(self.vectors, int):
            self._shares(block.rows, there, self.vectors)
        else:
            for count in widths(self.work.keys.scale.width // LANES):
                with self.code.when(self.vectors == integer(count)):
                    self._shares(block.rows, there, count)
        self._values(row, block.rows, there)

    def _shares(self, rows: int, there: Any, vectors: int) -> None:
        """Scores of so many vectors of keys to 255 * 2^(score - largest) in whole steps, and 1 / their sum."""
        tile = Tile(rows=min(score_rows(self.isa, vectors), rows), vectors=vectors)

        def emit(row: Any, part: Tile) -> None:
            for r, sums in enumerate(self._products(row, part)):
                self._score_row(row + r, r, [cell.value for cell in sums])
            with self.code.loop(part.rows) as r:
                self._softmax_row(row + r, r, vectors)

        row_tiles(self.code, rows, tile, emit, None if there is None else Part(end=units_of(there, tile.rows)))

    def _products(self, row: Any, tile: Tile) -> list[list[Register]]:
        """Return the sums of some query rows with all keys."""
        code, keys, query = self.code, self.work.keys, self.work.query
        columns = keys.scale.width
        starts = [bits(f"int32x{LANES}", self._key_row(keys.start, v)) for v in range(tile.vectors)]
        sums = [[code.register(start) for start in starts] for _ in range(tile.rows)]
        with code.loop(keys.depth // WORD) as k:
            places = [query.offset + (row + r) * query.stride + k for r in range(tile.rows)]
            spread = [code.let(tirx.Broadcast(bits("int32", load(self.memory, place)), LANES)) for place in places]
            for v in range(tile.vectors):
                column = code.let(load_vector(self.memory, keys.words.offset + k * columns + v * LANES, LANES))
                for cells, left in zip(sums, spread, strict=True):
                    cells[v].set(self._add(cells[v].value, left, column))
        return sums

    def _score_row(self, row: Any, place: int, totals: list[Any]) -> None:
        """Store one row of scores, and the largest of them.

        Without a bias the query's scale, which is the same for all of a row, is left out.
        """
        code, work, scores = self.code, self.work, []
        base = work.scores.offset + place * len(totals) * LANES
        for v, total in enumerate(totals):
            score, used = to_float(total, LANES) * self._key_row(work.keys.scale, v), self.heads.key.rows - v * LANES
            if self.bias is not None:
                score = score * self._scale(row) + load_vector(self.memory, self.bias.offset + v * LANES, LANES)
            elif used < LANES:
                score = score + mask(used, LANES)
            scores.append(code.let(score))
            code.store_vector(self.memory, base + v * LANES, scores[-1], LANES)
        code.store(self.memory, work.inverse.offset + row, lane_max(code, pairwise(code, tirx.max, scores), LANES))

    def _softmax_row(self, row: Any, place: Any, vectors: int) -> None:
        code, work = self.code, self.work
        top = splat(code.let(load(self.memory, work.inverse.offset + row)), LANES)
        # First less the largest, then scaled: what is largest must come out as 0, however large it is.
        scale = None if self.bias is not None else code.let(self._scale(row))
        base = work.scores.offset + place * vectors * LANES
        up, ones = literal(thresholds(LANES)), bits(f"float32x{LANES}", tirx.Broadcast(integer(ONES), LANES))
        none = tirx.Broadcast(integer(0), LANES)
        total = code.register(none)

        def group(first: Any, count: int) -> None:
            """Round the shares of up to four vectors."""
            steps = []
            for v in range(count):
                x = load_vector(self.memory, base + (first * GROUP + v) * LANES, LANES) - top
                x = code.let(x if scale is None else x * scale)
                steps.append(code.let(tirx.Cast(f"int32x{LANES}", _power(code, x) + up)))
            words = code.let(narrowed(code, [*steps, *[none] * (GROUP - count)]))
            code.store_vector(self.memory, work.shares.offset + row * work.shares.stride + first * LANES, words, LANES)
            total.set(self._add(total.value, bits(f"int32x{LANES}", words), ones))

        full, rest = divmod(vectors, GROUP)
        with code.loop(full) as index:
            group(index, GROUP)
        if rest:
            group(full, rest)
        inverse = number(1.0) / to_float(lane_sum(code, total.value, LANES))
        code.store(self.memory, work.inverse.offset + row, inverse)

    def _scale(self, row: Any) -> Any:
        return splat(load(self.memory, self.work.scale.offset + row), LANES)

    def _key_row(self, place: Place, v: int) -> Any:
        return load_vector(self.memory, place.offset + v * LANES, LANES)

    def _add(self, sums: Any, left: Any, right: Any) -> Any:
        assert isinstance(self.dot, _Spread)
        return self.dot.add(sums, left, right)


def _power(code: Code, x: Any) -> Any:
    """Return 255 * 2^x for x <= 0, relative error as in `POWER`: 2^(what is above a whole number), scaled by that."""
    kind, none = f"float32x{LANES}", splat(0.0, LANES)
    every, usual = tirx.const(EVERY, "int16"), integer(USUAL)
    f = code.let(instruction(kind, "llvm.x86.avx512.mask.reduce.ps.512", x, integer(DOWN), none, every, usual))
    value = splat(STEPS * POWER[0], LANES)
    for coefficient in POWER[1:]:
        value = value * f + splat(STEPS * coefficient, LANES)
    return code.let(instruction(kind, "llvm.x86.avx512.mask.scalef.ps.512", value, x, none, every, usual))
