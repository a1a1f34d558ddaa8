"""The instructions that multiply small integers, each as the inner loop of a product: exact sums in int32.

x86-64: vpmaddubsw takes uint8 by int8 and adds two products in 16 bits, which is exact for weights of 7 bits only;
vpmaddwd takes int16 by int16; vpdpbusd (VNNI) uint8 by int8. aarch64: smull, smlal and sadalp take int8 by int8, two
products in 16 bits, exact since weights are never -128; sdot (dotprod) and smmla (i8mm) add four and eight in 32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    Register,
    bits,
    instruction,
    integer,
    joined,
    lanes_of,
    unrolled,
)
from edgevit.backends.tvm.codegen.integers import Stored
from edgevit.backends.tvm.codegen.layout import pack, words
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.schema.int16_sums import Products, int16_exact

Left = Callable[[int, Any, int], Any]
Right = Callable[[Any, int], Any]
Sums = list[list[Any]]
"""A row of int32 vectors per row of the tile."""


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What an inner loop reads.

    Attributes:
        code: where to.
        tile: rows and vectors of the result.
        steps: of `Dot.depth` values each.
        left: (row, word, count) to so many words of a row's integers; where rows lie together, to their block.
        right: (word, count) to so many words of the packed panel.
        start: vector to what its sums start from, int32.
    """

    code: Code
    tile: Tile
    steps: int
    left: Left
    right: Right
    start: Callable[[int], Any]


@dataclass(frozen=True, kw_only=True)
class Dot(ABC):
    """One way to multiply integers.

    Attributes:
        lanes: of an int32 vector.
        mnemonic: of the instruction that multiplies, a regular expression.
        stored: type of the left side in memory.
        unit: of depth that lie together per column in the packed weights.
        waits: sums that are to be in flight so that none is waited for; 0 where any tile has enough.
        together: rows of the left side that share a block; see `Integers`.
        bias_in_sums: whether sums start from the bias too, in whole steps.
    """

    lanes: int
    mnemonic: ClassVar[str]
    stored: ClassVar[Stored] = "uint8"
    unit: ClassVar[int] = 4
    waits: ClassVar[int] = 0
    together: ClassVar[int] = 1

    @property
    def label(self) -> str:
        """Return what tells it from others of the same instruction set."""
        return type(self).__name__.lower()

    @property
    def depth(self) -> int:
        """Return values per step; rows are padded to whole steps."""
        return self.unit

    @property
    def bias_in_sums(self) -> bool:
        return self.stored == "int8"

    def pack(self, weight: np.ndarray, tile: Tile, lanes: int) -> np.ndarray:
        """Return int8 `[depth, columns]` as the inner loop reads it, bits of float32; both are whole already."""
        depth, columns = weight.shape
        units = np.ascontiguousarray(weight.reshape(depth // self.unit, self.unit, columns).transpose(0, 2, 1))
        return words(pack(units.view(f"V{self.unit}")[..., 0], tile, lanes))

    def joining(self, products: Products) -> Dot:
        """Return the way that adds so many products in 16 bits, which the caller knows to fit; itself without one."""
        return self

    def for_weight(self, weight: np.ndarray, products: Products) -> Dot:
        """Return the way for weights int8 `[depth, columns]`: `joining` if that is exact for any input, and whole."""
        joining = self.joining(products)
        return joining if len(weight) % joining.depth == 0 and int16_exact(weight, products) else self

    @abstractmethod
    def count(self, tile: Tile) -> int:
        """Return the number of multiplying instructions in the inner loop of a tile."""

    @abstractmethod
    def registers(self, tile: Tile) -> int:
        """Return vector registers that the inner loop of a tile needs."""

    @property
    def chains(self) -> int:
        """Return sums that are to be in flight at least."""
        return self.waits

    def loads(self, tile: Tile) -> float:
        """Return loads and moves per multiplication, relative to another tile's."""
        return 1 / tile.rows + 1 / tile.vectors

    @abstractmethod
    def sums(self, inner: Inner) -> Sums:
        """Emit the inner loop."""


class _Spread(Dot):
    """One word of a row, spread over a vector, times one vector of weights."""

    def count(self, tile: Tile) -> int:
        return tile.rows * tile.vectors

    def registers(self, tile: Tile) -> int:
        return tile.rows * tile.vectors + tile.vectors + 2

    def sums(self, inner: Inner) -> Sums:
        code, tile, words = inner.code, inner.tile, self.depth // self.unit
        cells, size = _cells(inner, tile.rows, tile.vectors), self.lanes * self.unit // 4
        with code.loop(inner.steps) as step:
            places = [step * words + i for i in range(words)]
            columns = [
                [code.let(inner.right(place * (size * tile.vectors) + v * size, size)) for place in places]
                for v in range(tile.vectors)
            ]
            for row in range(tile.rows):
                lefts = [bits("int32", inner.left(row, place, 1)) for place in places]
                spread = [code.let(tirx.Broadcast(left, self.lanes)) for left in lefts]
                for cell, column in zip(cells[row], columns, strict=True):
                    cell.set(self.step(cell.value, spread, column))
        return _values(cells)

    def step(self, sums: Any, lefts: Sequence[Any], rights: Sequence[Any]) -> Any:
        """Return `sums` and the products of one step: a left int32, and a right float32, vector of bits per word."""
        for both in zip(lefts, rights, strict=True):
            sums = self.add(sums, *both)
        return sums

    @abstractmethod
    def add(self, sums: Any, left: Any, right: Any) -> Any:
        """Return `sums` and the products of one word."""


# Without AVX, with AVX2 and with AVX-512, by lanes of int32.
_MADDUBS = {
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    16: "llvm.x86.avx512.pmaddubs.w.512",
}
_MADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True, kw_only=True)
class Maddubs(_Spread):
    """vpmaddubsw, then vpmaddwd by 1 to add pairs: 4 products per column.

    Attributes:
        joined: words whose sums of two products are added in 16 bits, so that one vpmaddwd serves all of them; whether
            that is exact, the weights must tell (`int16_sums`).
    """

    joined: int = 1
    mnemonic: ClassVar[str] = "v?pmaddubsw"

    def joining(self, products: Products) -> Dot:
        return replace(self, joined=products // 2)

    @property
    def label(self) -> str:
        return super().label + (f" by {2 * self.joined}" if self.joined > 1 else "")

    @property
    def depth(self) -> int:
        return self.joined * self.unit

    def count(self, tile: Tile) -> int:
        return self.joined * tile.rows * tile.vectors

    def registers(self, tile: Tile) -> int:
        return tile.rows * tile.vectors + self.joined * tile.vectors + 3

    def step(self, sums: Any, lefts: Sequence[Any], rights: Sequence[Any]) -> Any:
        pairs = [self._pairs(*both) for both in zip(lefts, rights, strict=True)]
        return sums + self._wide(sum(pairs[1:], pairs[0]))

    def add(self, sums: Any, left: Any, right: Any) -> Any:
        return self.step(sums, [left], [right])

    def _pairs(self, left: Any, right: Any) -> Any:
        """Return sums of two products each, int16."""
        n = self.lanes
        return instruction(f"int16x{2 * n}", _MADDUBS[n], bits(f"uint8x{4 * n}", left), bits(f"int8x{4 * n}", right))

    def _wide(self, pairs: Any) -> Any:
        """Return sums of two neighbours, int32."""
        ones = tirx.Broadcast(tirx.const(1, "int16"), 2 * self.lanes)
        return instruction(f"int32x{self.lanes}", _MADDWD[self.lanes], pairs, ones)


class Maddwd(_Spread):
    """vpmaddwd on weights widened as they are loaded: 2 products per column, exact for any weights."""

    mnemonic: ClassVar[str] = "v?pmaddwd"
    stored: ClassVar[Stored] = "int16"
    unit: ClassVar[int] = 2

    def add(self, sums: Any, left: Any, right: Any) -> Any:
        n = self.lanes
        wide = tirx.Cast(f"int16x{2 * n}", bits(f"int8x{2 * n}", right))
        return sums + instruction(f"int32x{n}", _MADDWD[n], bits(f"int16x{2 * n}", left), wide)


class Vpdpbusd(_Spread):
    """VNNI: 4 products per column and their sum in one instruction."""

    mnemonic: ClassVar[str] = "vpdpbusd"
    waits: ClassVar[int] = 10

    def registers(self, tile: Tile) -> int:
        return tile.rows * tile.vectors + tile.vectors + 1

    def add(self, sums: Any, left: Any, right: Any) -> Any:
        n = self.lanes
        name = f"llvm.x86.avx512.vpdpbusd.{32 * n}"
        return instruction(f"int32x{n}", name, sums, bits(f"uint8x{4 * n}", left), bits(f"int8x{4 * n}", right))


class Sdot(Dot):
    """Four rows lie together, so that a register has a word of each: one operand by its lane."""

    mnemonic: ClassVar[str] = "sdot"
    stored: ClassVar[Stored] = "int8"
    together: ClassVar[int] = 4

    @property
    def depth(self) -> int:
        return 2 * self.unit

    def count(self, tile: Tile) -> int:
        return 2 * tile.rows * tile.vectors

    def registers(self, tile: Tile) -> int:
        return tile.rows * tile.vectors + tile.vectors + -(-tile.rows // self.together)

    def loads(self, tile: Tile) -> float:
        return 1 / (self.together * tile.vectors) + 1 / tile.rows

    def sums(self, inner: Inner) -> Sums:
        code, tile = inner.code, inner.tile
        cells = _cells(inner, tile.rows, tile.vectors)
        groups = range(0, tile.rows, self.together)

        def step(index: Any) -> None:
            first = index * 2
            lefts = [[code.let(bits("int32x4", inner.left(row, first + i, 4))) for i in range(2)] for row in groups]
            for word in range(2):
                start = (first + word) * (4 * tile.vectors)
                columns = [code.let(bits("int8x16", inner.right(start + 4 * v, 4))) for v in range(tile.vectors)]
                for row in range(tile.rows):
                    lane = row % self.together
                    left = bits("int8x16", lanes_of(lefts[row // self.together][word], lane, lane, lane, lane))
                    for cell, column in zip(cells[row], columns, strict=True):
                        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
                        cell.set(instruction("int32x4", name, cell.value, column, left))

        unrolled(code, inner.steps, step)
        return _values(cells)


class Smmla(Dot):
    """Two rows lie together, by two columns at a time, 8 values deep; an odd last row has anything beside it."""

    mnemonic: ClassVar[str] = "smmla"
    stored: ClassVar[Stored] = "int8"
    unit: ClassVar[int] = 8
    together: ClassVar[int] = 2

    def count(self, tile: Tile) -> int:
        return 2 * -(-tile.rows // 2) * tile.vectors

    def registers(self, tile: Tile) -> int:
        pairs = -(-tile.rows // 2)
        return 2 * pairs * tile.vectors + pairs + 3

    def loads(self, tile: Tile) -> float:
        # Of an odd number of vectors the last one makes no whole block, and is stored word by word.
        return 1 / (2 * tile.vectors) + 2 / tile.rows + tile.vectors % 2

    def sums(self, inner: Inner) -> Sums:
        code, tile = inner.code, inner.tile
        pairs = range(0, tile.rows, 2)
        halves = [lanes_of(inner.start(v), *half) for v in range(tile.vectors) for half in ((0, 1, 0, 1), (2, 3, 2, 3))]
        cells = [[code.register(half) for half in halves] for _ in pairs]

        def step(index: Any) -> None:
            lefts = [code.let(bits("int8x16", inner.left(row, index * 2, 4))) for row in pairs]
            for i in range(2 * tile.vectors):
                column = code.let(bits("int8x16", inner.right(index * (8 * tile.vectors) + 4 * i, 4)))
                for row, left in zip(cells, lefts, strict=True):
                    name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
                    row[i].set(instruction("int32x4", name, row[i].value, left, column))

        unrolled(code, inner.steps, step)
        sums: Sums = []
        for row in range(tile.rows):
            picked = (0, 1, 4, 5) if row % 2 == 0 else (2, 3, 6, 7)
            pair = [cell.value for cell in cells[row // 2]]
            sums.append([code.let(joined(*pair[2 * v : 2 * v + 2], *picked)) for v in range(tile.vectors)])
        return sums


class Smlal(Dot):
    """One row by one column at a time, 16 values deep: two products per 16-bit lane, added in pairs into 32 bits."""

    mnemonic: ClassVar[str] = "smlal2?"
    stored: ClassVar[Stored] = "int8"
    unit: ClassVar[int] = 16

    def count(self, tile: Tile) -> int:
        return 4 * tile.rows * tile.vectors

    def registers(self, tile: Tile) -> int:
        return 4 * tile.rows * tile.vectors + 4 * tile.vectors + tile.rows + 4

    def loads(self, tile: Tile) -> float:
        return 1 / tile.rows + 1 / (4 * tile.vectors)

    def sums(self, inner: Inner) -> Sums:
        code, tile = inner.code, inner.tile
        zero = tirx.Broadcast(integer(0), 4)
        cells = [[code.register(zero) for _ in range(4 * tile.vectors)] for _ in range(tile.rows)]
        with code.loop(inner.steps) as step:
            rows = [code.let(bits("int8x16", inner.left(row, step * 4, 4))) for row in range(tile.rows)]
            for index in range(4 * tile.vectors):
                column = code.let(bits("int8x16", inner.right((step * (4 * tile.vectors) + index) * 4, 4)))
                for row, left in zip(cells, rows, strict=True):
                    products = _widened(left, column, 0) + _widened(left, column, 1)
                    pairs = instruction("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)
                    row[index].set(row[index].value + pairs)
        sums: Sums = []
        for row in cells:
            found = []
            for v in range(tile.vectors):
                a, b, c, d = (cell.value for cell in row[4 * v : 4 * v + 4])
                found.append(code.let(_pairs(_pairs(a, b), _pairs(c, d)) + inner.start(v)))
            sums.append(found)
        return sums


def _widened(a: Any, b: Any, half: int) -> Any:
    """Return the products of 8 int8 of each side, int16."""
    lanes = range(8 * half, 8 * half + 8)
    return instruction("int16x8", "llvm.aarch64.neon.smull.v8i16", lanes_of(a, *lanes), lanes_of(b, *lanes))


def _pairs(a: Any, b: Any) -> Any:
    """Return sums of neighbours, first those of `a`."""
    return instruction("int32x4", "llvm.aarch64.neon.addp.v4i32", a, b)


def _cells(inner: Inner, rows: int, vectors: int) -> list[list[Register]]:
    return [[inner.code.register(inner.start(v)) for v in range(vectors)] for _ in range(rows)]


def _values(cells: list[list[Register]]) -> Sums:
    return [[cell.value for cell in row] for row in cells]


def dot(isa: Isa, weight_bits: int) -> Dot:
    """Return the fastest exact one that an instruction set has for weights of so many bits."""
    kind: type[Dot] = Maddubs if weight_bits == 7 else Maddwd
    if isa.target["mtriple"].startswith("aarch64"):
        kind = Smmla if "i8mm" in isa.flags else Sdot if "asimddp" in isa.flags else Smlal
    elif {"avx512_vnni", "avx_vnni"} & set(isa.flags):
        kind = Vpdpbusd
    return kind(lanes=isa.lanes)
