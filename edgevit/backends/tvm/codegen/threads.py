"""How kernels are shared out among the threads of a run: one part per thread, cut when they are compiled.

Parts are contiguous rows where that halves the work, so that a thread finds in its own cache what it wrote one kernel
before. They are fixed here and not when a kernel runs: scratch of every part has its place in the arena, and a run with
fewer threads computes the same parts one after the other, so that its results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from edgevit.backends.tvm.codegen.code import Code, integer, smaller, whole
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, panels

# Steps (one multiply-add of a vector, or as long) below which a kernel stays on one thread: on Zen 4 waking another one
# and waiting for it takes 3.7 us, and in twice that a thread does so many.
WORTH = 40_000
CLEARLY = 0.97  # of the largest part: what a part of a tile in every block is worth
# Of a vector in LayerNorm's three passes, and of a pixel that is copied, and would else come from another core.
NORM_STEPS, PIXEL_STEPS = 20, 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """Units `first` up to `end` of a loop, numbers known here or only when it runs; part `index` of `count`."""

    index: Any = 0
    first: Any = 0
    end: Any
    count: int = 1


def parts(threads: int, units: int) -> int:
    """Return how many parts of equal size, the last one possibly smaller, so many units have; none is empty."""
    return -(-units // size(threads, units)) if units else 1


def size(threads: int, units: int) -> int:
    """Return the number of units of a part."""
    return -(-units // max(threads, 1))


def gain(threads: int, units: int) -> float:
    """Return how much less the largest part is than all: the speed-up, if nothing else took time."""
    return units / size(threads, units) if units else 1.0


@contextmanager
def shared(code: Code, threads: int, units: int, there: Any = None) -> Iterator[Part]:
    """Run what follows once for every part, each in a thread of its own; all of it here where there is one part.

    Of the units only the first `there` exist when it runs (None: all of them); there are as many parts.
    """
    count, step = parts(threads, units), size(threads, units)
    there = units if there is None else there
    if count == 1:
        with code.alone():
            yield Part(end=there)
        return
    if not isinstance(there, int):
        step = code.let(units_of(there, count))
    with code.loop(count, parallel=True) as index:
        first = code.let(index * integer(step))
        yield Part(index=index, first=first, end=code.let(smaller(first + integer(step), there)), count=count)


def threads_for(threads: int, steps: float) -> int:
    """Return how many threads to share out `steps` of work to: one where there is little of it."""
    return threads if steps >= WORTH else 1


@contextmanager
def each(code: Code, threads: int, extent: int, there: Any = None) -> Iterator[Any]:
    """A loop over 0 <= i < extent, shared out; see `shared`."""
    with shared(code, threads, extent, there) as part, code.loop(part.end - part.first) as index:
        yield part.first + index


@contextmanager
def either(
    code: Code, threads: int, rows: int, columns: int, steps: int, there: Any = None
) -> Iterator[tuple[Part, Part]]:
    """Parts of rows and of columns, one of which is all of them: rows unless columns are cut more evenly.

    `steps` is how much work there is altogether; see `WORTH`. `there` is how many rows exist; see `shared`.
    """
    threads = threads_for(threads, steps)
    if gain(threads, rows) >= 0.95 * gain(threads, columns):
        with shared(code, threads, rows, there) as part:
            yield part, Part(end=columns)
    else:
        with shared(code, threads, columns) as part:
            yield Part(end=rows if there is None else there), part


def pieces(code: Code, part: Part, full: int, emit: Callable[[Any], None], rest: Callable[[], None] | None) -> None:
    """Call `emit(unit)` for every unit of a part below `full`, and `rest` where it has the one behind them."""
    with code.loop(smaller(part.end, full) - part.first) as index:
        emit(part.first + index)
    if rest is None:
        return
    if part.count == 1 and isinstance(part.end, int):
        rest()
    else:
        with code.when(part.end > integer(full)):
            rest()


def even_block(threads: int, units: int, usual: int) -> int:
    """Return how many units to a block, about as many as usual, so that the largest part has few blocks."""
    if threads == 1:
        return min(units, usual)

    def largest(block: int) -> int:
        return block * size(threads, -(-units // block))

    return min(range(max(usual // 2, 1), 2 * usual), key=lambda block: (largest(block), abs(block - usual)))


def even_rows(threads: int, rows: int, tile: Tile, usual: int, given: int) -> int:
    """Return how many rows to a block so that the largest part is clearly smaller than with `given`, else `given`.

    Blocks may end with a part of a tile; they have about as many tiles as usual.
    """
    if threads == 1:
        return given

    def largest(block: int) -> int:
        return min(block * size(threads, -(-rows // block)), rows)

    tried = range(tile.rows * max(usual // 2, 1), 2 * tile.rows * usual)
    found = min(tried, key=lambda block: (largest(block), block % tile.rows, abs(block - tile.rows * usual)))
    return found if largest(found) < CLEARLY * largest(given) else given


@contextmanager
def team(code: Code, threads: int) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Run what follows in all threads at once: loops that are shared out share out, all else each of them does.

    Gives what makes a phase, which all threads must have done before one of them goes on.
    """
    if threads == 1:
        yield nullcontext
        return
    with code.region():
        yield code.phase


def row_tiles(code: Code, rows: int, tile: Tile, emit: Callable[[Any, Tile], None], part: Part | None = None) -> None:
    """Call `emit(first row, tile)` for every full tile of rows, and once for those left over.

    With a `part` of the tiles, only for those in it; see `row_units`.
    """
    full, rest = divmod(rows, tile.rows)
    last = Tile(rows=rest, vectors=tile.vectors)
    pieces(
        code,
        part or Part(end=row_units(rows, tile)),
        full,
        lambda index: emit(index * tile.rows, tile),
        (lambda: emit(full * tile.rows, last)) if rest else None,
    )


def row_units(rows: int, tile: Tile) -> int:
    """Return how many tiles `row_tiles` makes, the last one possibly smaller."""
    return -(-rows // tile.rows)


def units_of(rows: Any, size: int) -> Any:
    """Return how many units of so many rows there are, the last one possibly smaller; None for None rows."""
    return None if rows is None else whole(rows + (size - 1), size)


def over_panels(
    code: Code,
    isa: Isa,
    tile: Tile,
    shape: tuple[int, int, int],
    panel: Callable[[Any, int, Part], None],
    there: Any = None,
) -> None:
    """Call `panel(index, vectors, its tiles of rows)` for every panel of columns.

    `shape` is rows, columns and steps of a product's inner loop. `there` is how many of the rows exist when it runs
    (None: all): the last tile is computed whole, so rows behind them become anything, within the rows of the shape.
    """
    rows, columns, steps = shape
    full, rest = panels(columns, tile, isa.lanes)
    work = rows * columns // isa.lanes * steps
    with either(code, isa.threads, row_units(rows, tile), full + (rest > 0), work, units_of(there, tile.rows)) as (
        down,
        across,
    ):
        pieces(
            code,
            across,
            full,
            lambda index: panel(index, tile.vectors, down),
            (lambda: panel(full, rest, down)) if rest else None,
        )
