"""What attention of every kind has in common: its heads, the loop over them with blocks of query rows, and panels.

Per head, keys and values are packed once; then every thread attends with its own query rows, a block at a time. The
kinds: `attention` in float32, `attention_int8`, `attention_registers` and `attention_neon` in int8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from edgevit.backends.tvm.codegen.code import (
    Code,
    buffer,
    integer,
    larger,
    literal,
    smaller,
)
from edgevit.backends.tvm.codegen.integers import Matrix
from edgevit.backends.tvm.codegen.layout import Alive, Arena, Place
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.backends.tvm.codegen.threads import (
    Part,
    even_block,
    even_rows,
    row_tiles,
    row_units,
    shared,
    team,
    threads_for,
    units_of,
)
from edgevit.backends.tvm.kernels.common import alive_rows

MASKED = -1e30
# Row tiles that share a panel of keys or values while it is in the first cache.
BLOCK = 4


@dataclass(frozen=True, kw_only=True)
class Heads:
    """`count` heads of `width` used columns, `stride` apart, side by side in `query`, `key` and `value`."""

    count: int
    width: int
    stride: int
    query: Place
    key: Place
    value: Place


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Columns of a packed matrix from `first` on: `count` panels of `vectors` vectors with `used` columns each."""

    first: int
    used: int
    vectors: int
    count: int

    def there(self, columns: Any) -> Any:
        """Return how many of these panels have a column, where so many exist; None for None."""
        if columns is None:
            return None
        # A narrower panel is alone, and there as soon as it has one column.
        return smaller(units_of(larger(columns - integer(self.first), 0), self.used), self.count)

    def used_of(self, code: Code, first: Any, columns: Any) -> Any:
        """Return how many columns of the panel that starts at `first` are used, where so many exist."""
        return self.used if columns is None else code.let(smaller(columns - integer(first), self.used))


def attention_threads(isa: Isa, heads: Heads) -> int:
    """Return how many threads attention runs on: its work is two products per query, and packing."""
    return threads_for(isa.threads, heads.count * heads.key.rows * heads.width * (2 * heads.query.rows / isa.lanes + 1))


def packed_heads(isa: Isa, heads: Heads) -> int:
    """Return how many heads are packed before any is attended with: one, or all where threads would wait for each."""
    return heads.count if attention_threads(isa, heads) > 1 else 1


def repeated(arena: Arena, mark: int, times: int) -> int:
    """Reserve copies of what was handed out since `mark`; return the distance between them, 0 if there is one only."""
    return arena.repeat(mark, times) if times > 1 else 0


def block_rows(isa: Isa, heads: Heads, tile: Tile, *, whole: bool = False) -> int:
    """Return query rows of a block: `whole` tiles, unless parts of tiles share them out more evenly."""
    rows, threads = heads.query.rows, attention_threads(isa, heads)
    tiles = min(rows, tile.rows * even_block(threads, row_units(rows, tile), BLOCK))
    return tiles if whole else even_rows(threads, rows, tile, BLOCK, tiles)


def attend(
    isa: Isa,
    arena: int,
    blob: int,
    heads: Heads,
    block: Tile,
    make: Callable[[Code, Any, Any, Any], Head],
    alive: Alive | None,
    *,
    apart: bool = False,
    measured: bool = False,
) -> Any:
    """Return a kernel that attends head by head, a block of query rows at a time.

    Args:
        isa: what it is for.
        arena: its size.
        blob: the weights' size.
        heads: where query, key and value are.
        block: its rows, and the vectors of a tile.
        make: a head of (code, arena, weights, first column).
        alive: which rows exist where that is known only when it runs, of queries too unless these are fewer.
        apart: what is packed of every head has a place of its own, so that threads do not wait for each other per head.
        measured: threads pack rows of their own, for which they have to know something of all rows: `Head.measure`.
    """
    code = Code()
    memory, values = buffer("arena", arena), buffer("weights", blob)
    rows, threads = heads.query.rows, attention_threads(isa, heads)
    given, keys = alive_rows(code, alive, heads.key.rows)
    queries = keys if rows == heads.key.rows else None

    def made(index: Any) -> Head:
        head = make(code, memory, values, index * heads.stride)
        head.keys, head.queries, head.index = keys, queries, index
        head.work = head.work.head(index) if apart else head.work
        head.plan()
        return head

    def begin(head: Head, part: Part) -> Head:
        head.work = head.work.of(part)
        head.begin()
        return head

    def shares() -> AbstractContextManager[Part]:
        return shared(code, threads, row_units(rows, block), units_of(queries, block.rows))

    with team(code, threads) as phase:
        if apart:
            if measured:
                with phase(), code.loop(heads.count) as index:
                    made(index).measure()
            with phase(), code.loop(heads.count) as index:
                made(index).pack()
            with phase(), shares() as part, code.loop(heads.count) as index:
                row_tiles(code, rows, block, begin(made(index), part).rows, part)
        else:
            with code.loop(heads.count) as index:
                head = made(index)
                work = head.work
                if measured:
                    with phase():
                        head.measure()
                with phase():
                    head.pack()
                with phase(), shares() as part:
                    head.work = work
                    row_tiles(code, rows, block, begin(head, part).rows, part)
    return code.function([memory, values, *given])


class Head(ABC):
    """Head number `index`, whose columns start at `column`; `keys` and `queries` are how many exist (None: all).

    `work` has its places, and `of(part)` those of a thread.
    """

    index: Any = 0
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
        work: Any,
        tile: Tile,
        lanes: int,
        threads: int,
        bias: Place | None,
    ) -> None:
        self.code, self.memory, self.values, self.heads, self.column = code, memory, values, heads, column
        self.target, self.work, self.tile, self.lanes = target, work, tile, lanes
        self.threads, self.bias = threads, bias

    def plan(self) -> None:  # noqa: B027
        """Find what all threads have to know."""

    def measure(self) -> None:  # noqa: B027
        """Find what packing has to know of all rows, shared out among the threads."""

    @abstractmethod
    def pack(self) -> None:
        """Bring keys and values to the form that the products take, shared out among the threads."""

    def begin(self) -> None:  # noqa: B027
        """Find what a thread has to know before its rows."""

    @abstractmethod
    def rows(self, row: Any, block: Tile) -> None:
        """Attend with the query rows from `row` on."""


def panels_of(columns: int, tile: Tile, lanes: int) -> Iterator[Panel]:
    """Yield the panels of a packed matrix; the last one may be narrower."""
    width = tile.vectors * lanes
    full, rest = divmod(columns, width)
    if full:
        yield Panel(first=0, used=width, vectors=tile.vectors, count=full)
    if rest:
        yield Panel(first=full * width, used=rest, vectors=-(-rest // lanes), count=1)


def rows_of(code: Code, queries: Any, row: Any, rows: int) -> Any:
    """Return how many of `rows` rows from `row` on exist, where so many queries do; None for None."""
    return None if queries is None else code.let(smaller(queries - integer(row), rows))


def mask(used: int, lanes: int) -> Any:
    """Return what the sums of a vector of scores start from: far below any score in columns of padding."""
    return literal([0.0 if lane < used else MASKED for lane in range(lanes)])
