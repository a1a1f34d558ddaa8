"""Softmax of scores in 16 bits: a table for the fraction of a power of 2, a shift for its whole part."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    Register,
    bits,
    integer,
    joined,
    lanes_of,
    load_vector,
    splat,
    to_float,
    unrolled,
)
from edgevit.backends.tvm.codegen.integers import BLOCK, word_of
from edgevit.backends.tvm.codegen.neon import (
    INT8,
    INT16,
    INT32,
    LANES,
    constant,
    halved,
    load16,
    neon,
    round_to_int,
    spread16,
)
from edgevit.backends.tvm.codegen.threads import (
    units_of,
)
from edgevit.backends.tvm.kernels.attention_int8 import thresholds
from edgevit.backends.tvm.kernels.neon_head import NeonHead

LOWEST = -32768
POWERS = 64  # of 2, from 1 to 2, in the table
FRACTION = 256  # of a power of 2 that scores count in


class Softmax(NeonHead):
    """Takes a block of rows from scores to shares."""

    def softmax(self, first: Any, row: Any) -> None:
        """Scores of a block of rows to 254 * 2^(score - largest), less 128, and 1 / their sums."""
        code, memory, work = self.code, self.memory, self.work
        blocks = units_of(self.there, self.columns)
        base = code.let(self.score(row, 0))
        shares = code.let(word_of(work.shares, self.together, row, 0))

        def scores(index: Any) -> list[Any]:
            return [load16(memory, base + index * 8 + half * BLOCK) for half in range(2)]

        cells = [self._lowest(), self._lowest()]

        def largest(index: Any, values: list[Any]) -> None:
            for cell, value in zip(cells, values, strict=True):
                cell.set(bits(INT32, tirx.max(bits(INT16, cell.value), value)))

        unrolled(self.code, blocks, lambda index: largest(index, scores(index)))
        tops = self._tops(cells)
        shift, factor = self._row_factors(first + row)

        def powers(values: list[Any]) -> list[Any]:
            """Return how far scores are below the largest one, in 256ths of a power of 2."""
            found = []
            for half, value in enumerate(values):
                below = neon(INT16, "sqsub.v8i16", value, tops[half])
                below = neon(INT16, "sqshl.v8i16", below, shift[half])
                found.append(code.let(neon(INT16, "sqrdmulh.v8i16", below, factor[half])))
            return found

        if self.bias is not None:
            cells = [self._lowest(), self._lowest()]

            def biased(index: Any) -> None:
                found = [
                    code.let(neon(INT16, "sqadd.v8i16", value, bias))
                    for value, bias in zip(powers(scores(index)), self._biases(index), strict=True)
                ]
                for half, value in enumerate(found):
                    code.store_vector(memory, base + index * 8 + half * BLOCK, bits("float32x4", value), BLOCK)
                largest(index, found)

            unrolled(self.code, blocks, biased)
            tops = self._tops(cells)

            def powers(values: list[Any]) -> list[Any]:
                return [code.let(neon(INT16, "sqsub.v8i16", x, top)) for x, top in zip(values, tops, strict=True)]

        total = code.register(tirx.Broadcast(integer(0), LANES))
        exponential = _Exponential(code, self.columns)
        ones = constant(np.ones(16, np.int8))

        def share(index: Any, used: int | None = None) -> None:
            packed = exponential(powers(scores(index)), used)
            total.set(neon(INT32, "sdot.v4i32.v16i8", total.value, packed, ones))
            code.store_vector(memory, shares + index * BLOCK, bits("float32x4", packed), BLOCK)

        used = self.heads.key.rows % self.columns if self.bias is None else 0
        if used:
            unrolled(self.code, blocks - 1, share)
            share(blocks - 1, used)
        else:
            unrolled(self.code, blocks, share)
        sums = total.value
        if self.together == 2:
            sums = neon(INT32, "addp.v4i32", sums, sums)
        lost = tirx.Broadcast(integer(blocks) * (128 * self.columns), LANES)
        inverse = code.let(splat(1.0, LANES) / to_float(code.let(sums + lost), LANES))
        self.keep(work.inverse, row, inverse)

    def _biases(self, index: Any) -> list[Any]:
        """Return 16 lanes of biases: those of a block's columns for each of its rows."""
        at = self.work.bias.offset + index * (self.columns // 2)
        if self.together == 2:
            return [load16(self.memory, at)] * 2
        four = self.code.let(bits("int16x4", load_vector(self.memory, at, 2)))
        return [self.code.let(joined(four, four, *range(8)))] * 2

    def _lowest(self) -> Register:
        """Return a register of eight int16, which a compiler that shares memory takes for four int32."""
        return self.code.register(bits(INT32, spread16(tirx.const(LOWEST, "int16"))))

    def _tops(self, cells: list[Register]) -> list[Any]:
        """Return the largest lane of every row, in all its lanes."""
        found = self.code.let(neon(INT16, "smaxp.v8i16", *(bits(INT16, cell.value) for cell in cells)))
        for _ in range(1 if self.together == LANES else 2):
            found = self.code.let(neon(INT16, "smaxp.v8i16", found, found))
        return self._in_lanes(found)

    def _in_lanes(self, values: Any) -> list[Any]:
        """Return int16 of the rows of a block, one a lane, spread over the lanes of 16 scores."""
        if self.together == 2:
            return [self.code.let(lanes_of(values, *[row] * 8)) for row in range(2)]
        return [self.code.let(lanes_of(values, *[row] * 4, *[row + 1] * 4)) for row in (0, 2)]

    def _row_factors(self, row: Any) -> tuple[list[Any], list[Any]]:
        """Return (bits to shift to the left, factor of 2^15) from 16-bit scores to 256ths of a power of 2."""
        code = self.code
        scale = load_vector(self.memory, self.work.query_scale.offset + row, self.together)
        if self.together == 2:
            pair = code.let(scale)
            scale = joined(pair, pair, 0, 1, 2, 3)
        scale = code.let(scale * splat(self.unit, LANES))
        exponent = (bits(INT32, scale) >> tirx.Broadcast(integer(23), LANES)) - tirx.Broadcast(integer(126), LANES)
        up = code.let(
            tirx.min(tirx.max(exponent, tirx.Broadcast(integer(0), LANES)), tirx.Broadcast(integer(15), LANES))
        )
        power = (tirx.Broadcast(integer(127 + 15), LANES) - up) << tirx.Broadcast(integer(23), LANES)
        factor = code.let(round_to_int(scale * bits("float32x4", power)))
        return self._in_lanes(code.let(halved(up, up))), self._in_lanes(code.let(halved(factor, factor)))


class _Exponential:
    """Sixteen int16 x <= 0, in 256ths, to 254 * 2^x - 128 as int8, cut off as `attention_int8` does it."""

    def __init__(self, code: Code, columns: int) -> None:
        self.code, self.columns = code, columns
        whole_steps = powers()
        self.table = [code.let(constant(whole_steps[i : i + 16])) for i in range(0, POWERS, 16)]
        # Added before the lower byte is cut off, in the same step that takes 128 off.
        up = np.resize(np.array(thresholds(columns)) * 256, 8).astype(np.int64) - 32768
        self.up = code.let(constant(up.astype(np.int16)))
        self.one = code.let(spread16(tirx.const(FRACTION, "int16")))

    def __call__(self, values: list[Any], used: int | None) -> Any:
        code = self.code
        low = bits("uint8x16", joined(*(bits(INT8, x) for x in values), *range(0, 32, 2)))
        index = low >> tirx.Broadcast(tirx.const(2, "uint8"), 16)
        mantissa = code.let(neon("uint8x16", "tbl4.v16i8", *self.table, index))
        zero = tirx.Broadcast(tirx.const(0, "uint8"), 16)
        narrow = []
        for half, x in enumerate(values):
            lanes = [lane for i in range(8 * half, 8 * half + 8) for lane in (i, 16 + i)]
            wide = bits("uint16x8", code.let(joined(zero, mantissa, *lanes)))
            up = (x + self.one) >> tirx.Broadcast(tirx.const(8, "int16"), 8)
            power = bits(INT16, neon("uint16x8", "ushl.v8i16", wide, up))
            narrow.append(neon("int8x8", "addhn.v8i8", power, self.up))
        packed = joined(*narrow, *range(16))
        if used is not None:
            row = np.arange(16) % self.columns < used
            packed = (packed & constant(np.where(row, -1, 0).astype(np.int8))) | constant(
                np.where(row, 0, -128).astype(np.int8)
            )
        return code.let(packed)


def powers() -> np.ndarray:
    """Return what 2^f is for the 64 parts of 0 <= f < 1, uint8: 127 * 2^f in the middle of each.

    Twice the first is what a row's largest score becomes: 254, to which a fraction can be added.
    """
    table = 127 * 2.0 ** ((np.arange(POWERS) + 0.5) / POWERS)
    table[0] = 127
    return np.rint(table).astype(np.uint8)
