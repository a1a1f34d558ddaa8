"""Rows packed as the columns of a product's right side, transposed block by block in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgevit.backends.tvm.codegen.code import Code, integer, joined, larger, load_vector, smaller, whole
from edgevit.backends.tvm.codegen.schedules import Tile
from edgevit.backends.tvm.codegen.threads import shared
from edgevit.backends.tvm.kernels.heads import Panel, panels_of


def pack_rows(
    code: Code,
    lanes: int,
    memory: Any,
    threads: int,
    shape: tuple[int, int],
    place: Callable[[Any], Any],
    target: int,
    tile: Tile,
    there: Any = None,
) -> None:
    """Pack the rows at `place(row)`, `shape` of them by their depth, as columns at `target`, in blocks of `lanes` rows.

    There must be whole vectors of a row to read. Behind the last row, number `there` - 1 where so many exist (None:
    all), come copies of it up to the end of its panel.
    """
    rows, depth = shape
    last = (rows if there is None else there) - 1
    groups = list(panels_of(rows, tile, lanes))
    most = sum(panel.count * panel.vectors for panel in groups)
    wanted = None if there is None else code.let(sum(panel.there(there) * panel.vectors for panel in groups))

    def block(panel: Panel, index: Any, v: Any) -> None:
        """Pack the rows of vector `v` of a panel."""
        columns = panel.vectors * lanes
        first = panel.first + index * columns
        numbers = [code.let(integer(smaller(first + v * lanes + i, last))) for i in range(lanes)]
        _pack_block(
            code, lanes, memory, depth, [place(row) for row in numbers], target + first * depth + v * lanes, columns
        )

    with shared(code, threads, most, wanted) as part:
        for panel in groups:
            begin, size = panel.first // lanes, panel.vectors
            if part.count == 1:
                with code.loop(panel.count if there is None else panel.there(there)) as index, code.loop(size) as v:
                    block(panel, index, v)
                continue
            # Of the part, what lies in these panels.
            first = larger(part.first, begin)
            with code.loop(larger(smaller(part.end, begin + panel.count * size) - first, 0)) as index:
                number = code.let(first - begin + index)
                block(panel, code.let(whole(number, size)), code.let(number % integer(size)))


def _pack_block(code: Code, lanes: int, memory: Any, depth: int, places: list[Any], base: Any, columns: int) -> None:
    """Pack as many rows as lanes, which begin at `places`, as columns at `base` of a panel with so many."""

    def block(k: Any, count: int) -> None:
        read = [load_vector(memory, place + k, lanes) for place in places]
        for i, column in enumerate(transposed(code, read)[:count]):
            code.store_vector(memory, base + (k + i) * columns, column, lanes)

    full, rest = divmod(depth, lanes)
    with code.loop(full) as step:
        block(step * lanes, lanes)
    if rest:
        block(full * lanes, rest)


def transposed(code: Code, rows: list[Any]) -> list[Any]:
    """Return the columns of as many vectors as they have lanes: each round interleaves the two halves."""
    lanes, half = len(rows), len(rows) // 2
    orders = [
        [lane // 2 + part * half + (lane % 2) * lanes for lane in range(lanes)] for part in range(2)
    ]  # the lower and the upper half of two vectors, lane by lane
    rows = [code.let(row) for row in rows]
    for _ in range(lanes.bit_length() - 1):
        rows = [code.let(joined(rows[i], rows[i + half], *order)) for i in range(half) for order in orders]
    return rows
