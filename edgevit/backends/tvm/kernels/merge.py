"""One point where tokens are merged, as one kernel: what `torch_form.tokens` says, the same pairs among equals too.

Products of normed rows are a small product of their own; all else is a pass over rows. The stream is changed in place:
what is left of the first set never lies behind where it was, and the second set waits in the scratch until then.

Numbers of tokens lie in the arena as float32, which is exact for them. Shapes: F, S tokens of both sets, D = dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    buffer,
    integer,
    lane_max,
    lane_min,
    larger,
    load,
    load_lanes,
    load_vector,
    number,
    smaller,
    splat,
    tensor,
    to_float,
    whole,
)
from edgevit.backends.tvm.codegen.layout import Alive, Arena, Place
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.backends.tvm.codegen.threads import (
    NORM_STEPS,
    Part,
    each,
    row_tiles,
    row_units,
    shared,
    team,
    threads_for,
    units_of,
)
from edgevit.backends.tvm.kernels.common import multiply, packed
from edgevit.backends.tvm.kernels.heads import MASKED, panels_of
from edgevit.backends.tvm.kernels.norm import moments
from edgevit.backends.tvm.kernels.pack_rows import pack_rows
from edgevit.program.tokens import halves

NO_INDEX = 1e9  # larger than any


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What counts the patches behind the tokens of the stream, from the first point on.

    Attributes:
        patches: of every patch token, `[1, patches]`.
        bias: what attention adds to the scores of every key, `[2, tokens]`: log(size) and, for powers of 2, log2(size);
            far below any score behind the last token.
        alive: how many tokens there are, where that follows the image.
    """

    patches: Place
    bias: Place
    alive: Alive | None = None


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How many pairs a point merges: `count`, the best ones.

    With a `limit` as many as have a product above `limit` + `gain` x effort, but at least `least`, at most `count`, and
    of the numbers between them one that leaves a multiple of `step` as rows; without `whole` a multiple itself.
    """

    count: int
    least: int = 0
    step: int = 1
    whole: bool = False
    limit: float | None = None
    gain: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a point chose, `[1, F]` each: of every token of the first set with whom, and how many have a better score.

    It may stay until the run is over, so that a verifier can read which pairs were merged.
    """

    into: Place
    order: Place


def choice(arena: Arena, patches: int) -> Choice:
    """Return places for what a point chooses that so many patch tokens come to."""
    first = halves(patches)[0]
    return Choice(into=arena.place(1, first), order=arena.place(1, first))


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Where a point works.

    Attributes:
        first: normed rows of the first set, `[F, D]`.
        second: normed rows of the second set, then its tokens times their sizes, `[S, D]`.
        keys: the second set's normed rows, transposed, packed panel by panel.
        scores: `[F, S]`.
        best, into, order: of every token of the first set its best score, with whom, and how many have a better one.
        goes: the row of what is left, among the patches.
        sizes: after the point.
    """

    first: Place
    second: Place
    keys: Place
    scores: Place
    best: Place
    into: Place
    order: Place
    goes: Place
    sizes: Place


def scratch(arena: Arena, patches: int, dim: int, lanes: int, chosen: Choice | None = None) -> Scratch:
    """Return places for a point that so many patch tokens come to; what it chooses goes where `chosen` says."""
    first, second = halves(patches)
    chosen = chosen or choice(arena, patches)
    rows = {name: arena.place(1, first) for name in ("best", "goes")}
    padded = -(-second // lanes) * lanes
    return Scratch(
        first=arena.place(first, dim),
        second=arena.place(second, dim),
        keys=arena.place(dim, padded),
        scores=arena.place(first, padded),
        sizes=arena.place(1, patches),
        into=chosen.into,
        order=chosen.order,
        **rows,
    )


def merge(
    isa: Isa,
    arena: int,
    blob: int,
    stream: Place,
    prefix: int,
    pairs: Pairs,
    sizes: Sizes,
    begins: bool,
    work: Scratch,
    tile: Tile,
    logs: int,
    eps: float,
    shift: int | None = None,
    after: Alive | None = None,
) -> Any:
    """Merge the best pairs of patch tokens: what is left is the prefix, the first set in order, the second.

    Where tokens are counted, there are as many before as `sizes` says, and how many are left is written for `after`.
    The blob has, from `logs` on, log(size) and log2(size) of every size from 1 on, with the stride of `sizes.bias`.
    Every token is one patch where the point `begins` the merging. `shift` is where the blob has a row that is taken
    from the normed rows, if any.
    """
    code = Code()
    memory, values = buffer("arena", arena), buffer("weights", blob)
    effort, tokens = tensor("effort", ()), None if after is None else buffer("tokens", after.points, "int32")
    patches: Any = stream.rows - prefix
    if sizes.alive is not None:
        patches = code.let(smaller(load(tokens, sizes.alive.point), patches))
    first, second = whole(patches + 1, 2), whole(patches, 2)

    def count() -> Any:
        """Pairs that are merged: every thread reads what one of them has written."""
        return pairs.count if after is None or pairs.limit is None else code.let(patches - load(tokens, after.point))

    point = _Merge(code, isa, memory, stream, prefix, sizes, begins, work, tile)
    with team(code, point.threads) as phase:
        with phase():
            point.norm(first, second, eps, None if shift is None else (values, shift))
        with phase():
            point.pack(second)
        with phase():
            point.scores(first, second)
        with phase(), code.alone():
            point.rank(first)
            if after is not None:
                merged = pairs.count if pairs.limit is None else point.pairs(first, patches, pairs, effort[()])
                code.store(tokens, after.point, integer(patches - merged))
            point.place(first, second, count())
        with phase():
            point.move(first, second, count())
        with phase(), code.alone():
            point.count(values, patches - count(), logs)
    given = [*([] if pairs.limit is None else [effort]), *([] if tokens is None else [tokens])]
    return code.function([memory, values, *given])


class _Merge:
    """One point; rows of the stream are numbered from the first patch token on."""

    def __init__(
        self,
        code: Code,
        isa: Isa,
        memory: Any,
        stream: Place,
        prefix: int,
        sizes: Sizes,
        begins: bool,
        work: Scratch,
        tile: Tile,
    ) -> None:
        self.code, self.lanes, self.memory, self.work, self.tile = code, isa.lanes, memory, work, tile
        self.rows, self.prefix, self.sizes, self.begins = stream.after(prefix), prefix, sizes, begins
        self.dim, self.vectors = stream.width, stream.stride // isa.lanes
        steps = work.first.rows * work.second.rows * self.dim // isa.lanes
        self.threads = threads_for(isa.threads, steps + self.rows.rows * self.vectors * NORM_STEPS)

    def norm(self, first: Any, second: Any, eps: float, shift: tuple[Any, int] | None) -> None:
        """Rows of both sets, each minus its mean and divided by its deviation, then less the `shift`."""
        code, lanes = self.code, self.lanes
        for place, begin, count in ((self.work.first, 0, first), (self.work.second, 1, second)):
            with each(code, self.threads, place.rows, _known_late(count)) as index:
                base = self._row(2 * index + begin)
                mean, scaled = moments(code, self.memory, base, self.dim, self.dim, eps, lanes)
                with code.loop(self.vectors) as v:
                    x = load_vector(self.memory, base + v * lanes, lanes)
                    target = place.offset + index * place.stride + v * lanes
                    y = (x - splat(mean, lanes)) * splat(scaled, lanes)
                    if shift is not None:
                        y = y - load_vector(shift[0], shift[1] + v * lanes, lanes)
                    code.store_vector(self.memory, target, y, lanes)

    def pack(self, second: Any) -> None:
        """Transpose the second set in blocks of as many tokens as lanes; behind the last one come copies of it."""
        source = self.work.second
        pack_rows(
            self.code,
            self.lanes,
            self.memory,
            self.threads,
            (source.rows, self.dim),
            lambda row: source.offset + row * source.stride,
            self.work.keys.offset,
            self.tile,
            _known_late(second),
        )

    def scores(self, first: Any, second: Any) -> None:
        """Products of every token of the first set with all of the second, and the best of them."""
        code, lanes, work = self.code, self.lanes, self.work
        units = row_units(work.first.rows, self.tile)
        there = units_of(_known_late(first), self.tile.rows)
        with shared(code, self.threads, units, there) as part:
            for panel in panels_of(work.second.rows, self.tile, lanes):
                width = panel.vectors * lanes
                with code.loop(panel.count if there is None else panel.there(second)) as index:
                    self._panel(panel.first + index * width, panel.vectors, part)
            end = smaller(part.end * self.tile.rows, first)
            begin = part.first * self.tile.rows
            with code.loop(end - begin) as row:
                self._best(begin + row, second)

    def _panel(self, first: Any, vectors: int, part: Part) -> None:
        code, lanes, work = self.code, self.lanes, self.work
        right = packed(self.memory, work.keys.offset + first * self.dim, vectors * lanes, lanes)

        def tile(row: Any, tile: Tile) -> None:
            sums = multiply(
                code,
                lanes,
                tile,
                self.dim,
                lambda r, k, n: load_lanes(self.memory, work.first.offset + (row + r) * work.first.stride + k, n),
                right,
                lambda _: splat(0.0, lanes),
            )
            for r in range(tile.rows):
                for v in range(tile.vectors):
                    place = work.scores.offset + (row + r) * work.scores.stride + first + v * lanes
                    code.store_vector(self.memory, place, sums[r * tile.vectors + v].value, lanes)

        row_tiles(code, work.first.rows, Tile(rows=self.tile.rows, vectors=vectors), tile, part)

    def _best(self, row: Any, second: Any) -> None:
        """The largest score of a row, and the first column that has it."""
        code, lanes, work = self.code, self.lanes, self.work
        base, vectors = work.scores.offset + row * work.scores.stride, units_of(second, lanes)
        largest = code.register(load_vector(self.memory, base, lanes))
        with code.loop(vectors) as v:
            largest.set(tirx.max(largest.value, load_vector(self.memory, base + v * lanes, lanes)))
        top = code.let(lane_max(code, largest.value, lanes))
        index = code.register(splat(NO_INDEX, lanes))
        with code.loop(vectors) as v:
            own = to_float(tirx.Ramp(integer(v * lanes), integer(1), lanes), lanes)
            x = load_vector(self.memory, base + v * lanes, lanes)
            found = tirx.Select(x >= splat(top, lanes), own, splat(NO_INDEX, lanes))
            index.set(tirx.min(index.value, found))
        # What is no number is worse than all others: places and ranks are then those of tokens that there are.
        code.store(self.memory, work.best.offset + row, tirx.Select(top >= number(MASKED), top, number(MASKED)))
        into = tirx.min(lane_min(code, index.value, lanes), to_float(integer(second - 1)))
        code.store(self.memory, work.into.offset + row, into)

    def rank(self, first: Any) -> None:
        """Of every token of the first set, how many come before it: better ones, and equal ones of lower index."""
        code, lanes, work = self.code, self.lanes, self.work
        one, none = splat(1.0, lanes), splat(0.0, lanes)
        with code.loop(units_of(first, lanes)) as v:
            own = code.let(load_vector(self.memory, work.best.offset + v * lanes, lanes))
            index = code.let(to_float(tirx.Ramp(integer(v * lanes), integer(1), lanes), lanes))
            before = code.register(none)
            with code.loop(first) as other:
                best = code.let(splat(load(self.memory, work.best.offset + other), lanes))
                lower = tirx.Select(splat(to_float(integer(other)), lanes) < index, one, none)
                equal = tirx.Select(best >= own, lower, none)
                before.set(before.value + tirx.Select(best > own, one, equal))
            code.store_vector(self.memory, work.order.offset + v * lanes, before.value, lanes)

    def pairs(self, first: Any, patches: Any, pairs: Pairs, effort: Any) -> Any:
        """How many pairs are merged in this image."""
        code, above = self.code, self.code.register(integer(0))
        assert pairs.limit is not None
        limit = code.let(number(pairs.limit) + number(pairs.gain) * effort)
        with code.loop(first) as index:
            best = load(self.memory, self.work.best.offset + index)
            above.set(above.value + tirx.Cast("int32", best > limit))
        found = code.let(above.value)
        if pairs.whole:
            rows = code.let(patches + self.prefix - smaller(found, pairs.count))
            left = whole(rows + (pairs.step - 1), pairs.step) * pairs.step
            return code.let(larger(patches + self.prefix - left, pairs.least))
        stepped = larger(whole(found, pairs.step) * pairs.step, pairs.least)
        return code.let(tirx.Select(found >= integer(pairs.count), integer(pairs.count), stepped))

    def place(self, first: Any, second: Any, count: Any) -> None:
        """The row that each of the first set goes to if it is left, and the sizes that come out."""
        code, work, left = self.code, self.work, first - count
        with code.loop(second) as index:
            code.store(self.memory, work.sizes.offset + left + index, self._size(2 * index + 1))
        row = code.register(integer(0))
        with code.loop(first) as index:
            code.store(self.memory, work.goes.offset + index, to_float(row.value))
            with self._either(index, count) as (merged, stays):
                with merged():
                    place = work.sizes.offset + left + self._number(work.into, index)
                    code.store(self.memory, place, load(self.memory, place) + self._size(2 * index))
                with stays():
                    code.store(self.memory, work.sizes.offset + row.value, self._size(2 * index))
                    row.set(row.value + integer(1))

    def move(self, first: Any, second: Any, count: Any) -> None:
        """Sums of what belongs together, what is left to its row, and the means behind it. Threads share columns."""
        code, lanes, work, left = self.code, self.lanes, self.work, first - count
        with shared(code, self.threads, self.vectors) as part:

            def columns(to: Any, source: Any, weight: Any = None, *, onto: bool = False) -> None:
                with code.loop(part.end - part.first) as v:
                    at = (part.first + v) * lanes
                    x = load_vector(self.memory, source + at, lanes)
                    x = x if weight is None else x * splat(weight, lanes)
                    x = x + load_vector(self.memory, to + at, lanes) if onto else x
                    code.store_vector(self.memory, to + at, x, lanes)

            def sums(index: Any) -> Any:
                return work.second.offset + index * work.second.stride

            with code.loop(second) as index:
                columns(sums(index), self._row(2 * index + 1), self._weight(2 * index + 1))
            with code.loop(first) as index, self._either(index, count) as (merged, stays):
                with merged():
                    to = code.let(sums(self._number(work.into, index)))
                    columns(to, self._row(2 * index), self._weight(2 * index), onto=True)
                with stays():
                    columns(code.let(self._row(self._number(work.goes, index))), self._row(2 * index))
            with code.loop(second) as index:
                size = load(self.memory, work.sizes.offset + left + index)
                columns(self._row(left + index), sums(index), code.let(number(1.0) / size))

    def count(self, values: Any, patches: Any, logs: int) -> None:
        """Sizes of all tokens that are left, and their logarithms."""
        code, bias = self.code, self.sizes.bias
        with code.loop(patches) as index:
            size = code.let(load(self.memory, self.work.sizes.offset + index))
            code.store(self.memory, self.sizes.patches.offset + index, size)
            for row in range(bias.rows):
                log = load(values, tirx.Cast("int32", size) + (logs + row * bias.stride - 1))
                code.store(self.memory, bias.offset + row * bias.stride + self.prefix + index, log)
        for row in range(bias.rows):
            base = bias.offset + row * bias.stride
            with code.loop(self.prefix) as index:
                code.store(self.memory, base + index, number(0.0))
            end = self.prefix + patches
            with code.loop(bias.stride - end) as index:
                code.store(self.memory, base + end + index, number(MASKED))

    @contextmanager
    def _either(self, index: Any, count: Any) -> Iterator[Any]:
        """What to do where a token of the first set is merged, and where it stays."""
        merged = self.code.let(load(self.memory, self.work.order.offset + index) < to_float(integer(count)))
        yield (lambda: self.code.when(merged)), (lambda: self.code.when(tirx.Not(merged)))

    def _row(self, index: Any) -> Any:
        return self.rows.offset + index * self.rows.stride

    def _number(self, place: Place, index: Any) -> Any:
        return tirx.Cast("int32", load(self.memory, place.offset + index))

    def _size(self, index: Any) -> Any:
        return number(1.0) if self.begins else load(self.memory, self.sizes.patches.offset + index)

    def _weight(self, index: Any) -> Any:
        return None if self.begins else self.code.let(self._size(index))


def _known_late(count: Any) -> Any:
    """Return a number that is known only when the kernel runs, None for others."""
    return None if isinstance(count, int) else count
