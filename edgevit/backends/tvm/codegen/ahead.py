"""Weights that are brought into the second cache before a kernel reads them.

A model's weights do not fit that cache, so every run brings them in anew, and what a processor loads ahead of its own
accord ends with each page. Kernels read the weights of a stage in the order in which they lie: each asks, tile by tile,
for what lies a fixed distance ahead of what it multiplies with, and a LayerNorm for what its stage begins with.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import Code, integer, load, smaller, whole
from edgevit.backends.tvm.codegen.schedules import BY_LANE, Isa, Tile
from edgevit.backends.tvm.codegen.threads import Part, row_units, size

LINE = 16  # float32
# How far ahead, in float32: more than a panel, so that no tile waits for what another one is yet to ask for.
DISTANCE = {"float32": 32 << 10, "int8": 16 << 10}
NORM_LINES = 5  # for every row of a LayerNorm
# With fewer tiles of rows a panel is read faster than it could come.
FEWEST_TILES = 4
READ, SECOND_CACHE, DATA = 0, 2, 1


class Ahead:
    """What asks for a stage's weights, `blob` float32; nothing where vectors are narrow, which nobody has measured."""

    def __init__(self, code: Code, isa: Isa, values: Any, blob: int) -> None:
        self.code, self.values, self.blob = code, values, blob
        self.pays = isa.lanes > BY_LANE and blob >= LINE

    def panel(self, kind: str, base: Any, words: int, rows: int, tile: Tile, row: Any, part: Part) -> None:
        """Ask for the share of the tile at `row` in what lies ahead of a panel of so many words at `base`."""
        units = row_units(rows, tile)
        if units < FEWEST_TILES:
            return
        lines = -(-words // (LINE * size(part.count, units)))
        turn = whole(row, tile.rows) - part.first
        self.lines(base + DISTANCE[kind] + turn * (lines * LINE), lines)

    def lines(self, place: Any, count: int) -> None:
        """Ask for so many lines from `place` on, or the last ones that there are."""
        if not self.pays:
            return
        count = min(count, self.blob // LINE)
        first = self.code.let(integer(smaller(place, self.blob - count * LINE)))
        for index in range(count):
            address = tirx.address_of(load(self.values, first + index * LINE))
            how = [integer(number) for number in (READ, SECOND_CACHE, DATA)]
            self.code.add(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *how)))
