"""The end of an int8 Linear on NEON where int8 follows: activation function and quantization in 16 bits.

All functions of an FFN are relu(x) - g(|x|), g small and soon nothing: a look-up among 256 values gives it, and what is
counted in 16ths of a step of the target needs no float. An outlier column's product joins the sums in whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    activate,
    bits,
    integer,
    joined,
    lanes_of,
    load,
    load_vector,
    splat,
    to_float,
)
from edgevit.backends.tvm.codegen.dots import Sums
from edgevit.backends.tvm.codegen.integers import BLOCK, Integers
from edgevit.backends.tvm.codegen.layout import Blob, words
from edgevit.backends.tvm.codegen.neon import (
    INT16,
    INT32,
    LANES,
    chunks,
    filled,
    halved,
    neon,
    put_kept,
    round_to_int,
    spread16,
    store_chunk,
)
from edgevit.program.spec import Activation

ENTRIES, BYTE = 256, 255
FINEST, COARSEST = 4, 2  # bits of a step's fraction
NOTHING = 1 / 8  # of a step


@dataclass(frozen=True, kw_only=True)
class Curve:
    """An activation function in the target's steps, of which `fraction` bits are less than one.

    Attributes:
        activation: which.
        multiplier: where the blob has what turns sums into such steps, int32 per column, of 2^31.
        table: where it has relu(x) - f(x) for |x| in `ENTRIES` bins, bytes.
        fraction: bits.
        bin: bits of |x| that one bin has.
    """

    activation: Activation
    multiplier: int
    table: int
    fraction: int
    bin: int


def distance(kind: Activation, x: np.ndarray) -> np.ndarray:
    """Return relu(x) - f(x) for x >= 0, which is what it is for -x."""
    if kind == "relu":
        return np.zeros_like(x)
    if kind == "gelu":
        return np.array([v * 0.5 * math.erfc(v * math.sqrt(0.5)) for v in x.ravel()]).reshape(x.shape)
    exponent = 1.702 * x if kind == "quick_gelu" else x
    if kind == "gelu_tanh":
        exponent = 2 * 0.7978845608028654 * (x + 0.044715 * x**3)
    result: np.ndarray = x / (1 + np.exp(np.minimum(exponent, 80)))
    return result


def add_curve(blob: Blob, kind: Activation, scale: np.ndarray, step: float) -> Curve | None:
    """Put a function's numbers into the blob, for sums of `scale` per column and a target's step.

    None where 16 bits do not do: steps so fine that the function's hump has more than 255 of them, or sums so coarse
    that one counts for more than a step's fraction.
    """
    grid = np.linspace(0, 40, 40001)
    hump = distance(kind, grid)
    end = float(grid[np.flatnonzero(hump > NOTHING * step)[-1]]) if (hump > NOTHING * step).any() else 0.0
    for fraction in range(FINEST, COARSEST - 1, -1):
        unit = step / 2**fraction
        multiplier = scale.astype(np.float64) / unit
        shift = max(1, math.ceil(math.log2(max(end / unit / ENTRIES, 1))))
        if hump.max() <= BYTE * unit and multiplier.max() < 1 - 2**-30 and shift <= 8:
            break
    else:
        return None
    centres = (np.arange(ENTRIES) * 2.0**shift + (2**shift - 1) / 2) * unit
    table = np.rint(distance(kind, centres) / unit).astype(np.uint8)
    return Curve(
        activation=kind,
        multiplier=blob.add(words(np.rint(multiplier * 2**31).astype(np.int32))),
        table=blob.add(words(table)),
        fraction=fraction,
        bin=shift,
    )


def store_curve(
    code: Code,
    memory: Any,
    values: Any,
    target: Integers,
    curve: Curve,
    scale: int,
    sums: Sums,
    place: tuple[Any, Any],
    *,
    aligned: bool,
) -> None:
    """Store a tile of sums at (row, column) as the target's integers; `scale` is where the blob has the columns'."""
    rows, vectors, column = len(sums), len(sums[0]), place[1]

    def exactly(r: int, v: int) -> Any:
        x = to_float(sums[r][v], LANES) * load_vector(values, scale + column + v * LANES, LANES)
        return activate(code, curve.activation, x, LANES)

    put_kept(code, memory, target, (rows, vectors), place, exactly)
    several = list(chunks(rows, vectors, target.together, aligned=aligned))
    factors = [
        code.let(bits(INT32, load_vector(values, curve.multiplier + column + v * LANES, LANES))) for v in range(vectors)
    ]
    # All are halved before tables take their registers.
    halves = []
    for chunk in several:
        scaled = [neon(INT32, "sqrdmulh.v4i32", sums[r][v], factors[v]) for r, v in chunk.parts]
        a, b, c, d = filled(scaled)
        halves.append((code.let(halved(a, b)), code.let(halved(c, d))))
    zero = tirx.Cast("int16", load(values, target.grid + 1)) * tirx.const(1 << curve.fraction, "int16")
    lowest = code.let(spread16(zero))
    tables = None if curve.activation == "relu" else _tables(code, values, curve)
    for chunk, pair in zip(several, halves, strict=True):
        humps = None if tables is None else _looked_up(code, tables, pair, curve.bin)
        parts = []
        for half, x in enumerate(pair):
            y = tirx.max(neon(INT16, "sqadd.v8i16", x, lowest), lowest)
            if humps is not None:
                hump = lanes_of(humps, *range(8 * half, 8 * half + 8))
                y = y - bits(INT16, tirx.Cast("uint16x8", hump))
            parts.append(neon("int8x8", "sqrshrn.v8i8", y, integer(curve.fraction)))
        store_chunk(code, memory, target, chunk, *place, joined(*parts, *range(16)))


def _tables(code: Code, values: Any, curve: Curve) -> list[list[Any]]:
    """Return four tables of four registers."""
    return [
        [code.let(bits("uint8x16", load_vector(values, curve.table + (4 * t + i) * BLOCK, BLOCK))) for i in range(4)]
        for t in range(4)
    ]


def _looked_up(code: Code, tables: list[list[Any]], pair: tuple[Any, Any], bin_bits: int) -> Any:
    """Return the table's 16 bytes for the absolute values of 16 int16."""
    kind = "uint8x16"
    narrow = [
        neon("uint8x8", "uqshrn.v8i8", bits("uint16x8", neon(INT16, "sqabs.v8i16", x)), integer(bin_bits)) for x in pair
    ]
    index = code.let(joined(*narrow, *range(16)))
    found = neon(kind, "tbl4.v16i8", *tables[0], index)
    for table in tables[1:]:
        # An index beyond a table leaves what was found.
        index = code.let(index - tirx.Broadcast(tirx.const(64, "uint8"), 16))
        found = neon(kind, "tbx4.v16i8", found, *table, index)
    return code.let(found)


def with_outliers(
    code: Code,
    sums: Sums,
    outliers: int,
    factor: Callable[[int, int], Any],
    weight: Callable[[int, int], Any],
) -> Sums:
    """Add products of float columns to a tile's sums, in whole steps of theirs.

    Args:
        code: where to.
        sums: of the int8 columns.
        outliers: how many float columns there are.
        factor: (row, outlier) to the value.
        weight: (outlier, vector) to weights in steps of the sums.
    """
    if not outliers:
        return sums
    found: Sums = []
    for r, row in enumerate(sums):
        factors = [code.let(splat(factor(r, index), LANES)) for index in range(outliers)]
        added = []
        for v, total in enumerate(row):
            exact = factors[0] * weight(0, v)
            for index in range(1, outliers):
                exact = exact + factors[index] * weight(index, v)
            added.append(code.let(total + round_to_int(exact)))
        found.append(added)
    return found
