"""Linears in int8 as the plan says: weights per output column, exact sums in int32, one fused epilogue in float.

y = scale_x * scale_w * (sum of q * w - zero * sum of w) + bias; the correction is what the sums start from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevit.backends.tvm.codegen.ahead import Ahead
from edgevit.backends.tvm.codegen.code import (
    Code,
    bits,
    buffer,
    load,
    load_lanes,
    load_vector,
    splat,
    to_float,
)
from edgevit.backends.tvm.codegen.dots import Dot, Inner, Sums
from edgevit.backends.tvm.codegen.integers import BLOCK, WORD, Integers, Matrix, zero_point
from edgevit.backends.tvm.codegen.layout import Alive, Blob, pad_columns, words
from edgevit.backends.tvm.codegen.neon import put_kept, put_tile
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, pad, panels
from edgevit.backends.tvm.codegen.threads import Part, over_panels, row_tiles
from edgevit.backends.tvm.kernels.common import Epilogue, alive_rows, finish, finished
from edgevit.backends.tvm.kernels.int8_neon import Curve, add_curve, store_curve, with_outliers
from edgevit.program.spec import Activation
from edgevit.schema.quant_plan import LinearPlan, QuantPlan

# The largest bias that sums start from.
SUMS_BIAS = 2.0**29


@dataclass(frozen=True, kw_only=True)
class Int8Weights:
    """A packed `[depth, columns]` int8 matrix in a blob, both padded, and where its rows of numbers per column start.

    Attributes:
        offset: of the packed matrix, in words.
        depth: padded.
        columns: padded.
        start: int32, what sums start from: - zero * sum of the column.
        scale: float32, scale of the input times the column's.
        bias: float32.
        outliers: columns of the input that are multiplied in float32, with the weights that start at `exact`.
        exact: float32 `[outliers, columns]`; with a `curve` in steps of the sums.
        curve: the activation function behind it, where that is one of the target's steps.
    """

    offset: int
    depth: int
    columns: int
    start: int
    scale: int
    bias: int | None = None
    outliers: tuple[int, ...] = ()
    exact: int = 0
    curve: Curve | None = None


def quantize_weight(weight: np.ndarray, bits: int, least: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """`[in, out]` float32 to (int8 `[in, out]`, scale float32 `[out]`), symmetric, as `edgevit.onnx_form` does it.

    No scale is below `least`.
    """
    limit = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(limit)
    scale = np.maximum(scale, np.float32(least))
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def padded_steps(
    weight: np.ndarray, bias: np.ndarray | None, plan: QuantPlan, entry: LinearPlan, dot: Dot
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights `[depth, columns]` of a Linear as int8, padded to whole steps and vectors, and their scales.

    Outliers are 0 there; scales are of the columns that were given.
    """
    regular = weight.copy()
    regular[np.array(entry.outliers, dtype=np.int64)] = 0
    # Sums that start from the bias keep room beside it.
    least = np.abs(bias) / (entry.scale * SUMS_BIAS) if bias is not None and dot.bias_in_sums else 0.0
    values, scale = quantize_weight(regular, plan.weight_bits, least)
    depth, columns = pad(weight.shape[0], dot.depth), pad(weight.shape[1], dot.lanes)
    return np.pad(values, ((0, depth - values.shape[0]), (0, columns - values.shape[1]))), scale


def add_weights(
    blob: Blob,
    weight: np.ndarray,
    bias: np.ndarray | None,
    plan: QuantPlan,
    entry: LinearPlan,
    dot: Dot,
    tile: Tile,
    behind: tuple[Activation, float] | None = None,
) -> Int8Weights:
    """Quantize and pack the weights `[depth, columns]` of a Linear into a blob.

    `behind` are its activation function and the step of what then follows in int8.
    """
    padded, scale = padded_steps(weight, bias, plan, entry, dot)
    depth, columns = padded.shape
    scale = scale * np.float32(entry.scale)
    in_sums, outliers = bias is not None and dot.bias_in_sums, np.array(entry.outliers, dtype=np.int64)
    start = -zero_point(plan, entry, dot.stored) * padded.sum(axis=0, dtype=np.int64)
    row = curve = None
    exact = weight[outliers]
    if bias is not None:
        # Whole steps of the sums, as the plan's other backends have it.
        steps = np.rint(bias.astype(np.float64) / scale)
        if in_sums:
            start += pad_columns(steps.astype(np.int64), columns)
        else:
            row = (steps * scale).astype(np.float32)
    if behind is not None and dot.bias_in_sums:
        curve = add_curve(blob, behind[0], pad_columns(scale, columns), behind[1])
        exact = exact / scale if curve else exact
    return Int8Weights(
        offset=blob.add(dot.pack(padded, tile, dot.lanes)),
        depth=depth,
        columns=columns,
        start=blob.add(words(start.astype(np.int32))),
        scale=blob.add(pad_columns(scale, columns)),
        bias=None if row is None else blob.add(pad_columns(row, columns)),
        outliers=entry.outliers,
        exact=blob.add(pad_columns(exact, columns)) if entry.outliers else 0,
        curve=curve,
    )


def product(
    isa: Isa,
    arena: int,
    blob: int,
    source: Integers,
    target: Matrix,
    weights: Int8Weights,
    dot: Dot,
    tile: Tile,
    epilogue: Epilogue,
    alive: Alive | None = None,
) -> Any:
    """Compute target = epilogue(source @ weights + bias); source `[M, K]` integers, target `[M, N]`."""
    code, lanes = Code(), isa.lanes
    memory, values = buffer("arena", arena), buffer("weights", blob)
    given, there = alive_rows(code, alive, source.rows)
    width = tile.vectors * lanes
    ahead = Ahead(code, isa, values, blob)
    results = _Results(code, memory, values, source, target, weights, epilogue, tile, lanes)

    def panel(index: Any, vectors: int, tiles: Part) -> None:
        """Those tiles of the rows of so many vectors of columns."""
        first, base = index * width, weights.offset + index * (width * weights.depth // WORD)

        def rows(row: Any, part: Tile) -> None:
            words = vectors * lanes * weights.depth // WORD
            ahead.panel("int8", base, words, source.rows, tile, row, tiles)
            inner = Inner(
                code=code,
                tile=part,
                steps=weights.depth // dot.depth,
                left=lambda r, word, count: load_lanes(memory, source.word(row + r, word), count),
                right=lambda word, count: load_lanes(values, base + word, count),
                start=lambda v: bits(f"int32x{lanes}", load_vector(values, weights.start + first + v * lanes, lanes)),
            )
            results.store(dot.sums(inner), row, first)

        row_tiles(code, source.rows, Tile(rows=tile.rows, vectors=vectors), rows, tiles)

    over_panels(code, isa, tile, (source.rows, weights.columns, weights.depth // dot.unit), panel, there)
    return code.function([memory, values, *given])


class _Results:
    """What becomes of a product's sums, from (row, column) on: scaled, biased, with outliers, through the epilogue."""

    def __init__(
        self,
        code: Code,
        memory: Any,
        values: Any,
        source: Integers,
        target: Matrix,
        weights: Int8Weights,
        epilogue: Epilogue,
        tile: Tile,
        lanes: int,
    ) -> None:
        self.code, self.memory, self.values, self.source, self.target = code, memory, values, source, target
        self.weights, self.epilogue, self.lanes = weights, epilogue, lanes
        self.aligned = tile.vectors % (BLOCK // source.together) == 0

    def store(self, sums: Sums, row: Any, column: Any) -> None:
        if isinstance(self.target, Integers) and self.target.stored == "int8":
            self._store_integers(self.target, sums, row, column)
            return
        for r, totals in enumerate(sums):
            found = [self._scaled(total, row + r, column + v * self.lanes) for v, total in enumerate(totals)]
            finish(
                self.code,
                self.memory,
                self.values,
                self.target,
                self.weights.columns,
                self.epilogue,
                row + r,
                column,
                found,
                self.lanes,
            )

    def _store_integers(self, target: Integers, sums: Sums, row: Any, column: Any) -> None:
        """Store a tile in blocks of rows."""
        code, memory, values, weights = self.code, self.memory, self.values, self.weights
        if weights.curve is None:
            several = (len(sums), len(sums[0]), self.aligned)
            made = [
                [code.let(self._finished(x, row + r, column + v * self.lanes)) for v, x in enumerate(totals)]
                for r, totals in enumerate(sums)
            ]
            put_kept(code, memory, target, several[:2], (row, column), lambda r, v: made[r][v])
            put_tile(code, memory, values, target, several, (row, column), lambda r, v: made[r][v])
            return
        sums = with_outliers(
            code,
            sums,
            len(weights.outliers),
            lambda r, index: self._outlier(row + r, index),
            lambda index, v: self._row_of(weights.exact + index * weights.columns, column + v * self.lanes),
        )
        store_curve(
            code, memory, values, target, weights.curve, weights.scale, sums, (row, column), aligned=self.aligned
        )

    def _finished(self, total: Any, row: Any, column: Any) -> Any:
        value = self._scaled(total, row, column)
        columns, lanes = self.weights.columns, self.lanes
        return finished(
            self.code, self.memory, self.values, self.target, columns, self.epilogue, row, column, value, lanes
        )

    def _scaled(self, total: Any, row: Any, column: Any) -> Any:
        """Return a vector of sums as float32, with its bias and what outliers add."""
        weights = self.weights
        value = to_float(total, self.lanes) * self._row_of(weights.scale, column)
        if weights.bias is not None:
            value = value + self._row_of(weights.bias, column)
        for index in range(len(weights.outliers)):
            x = splat(self._outlier(row, index), self.lanes)
            value = value + x * self._row_of(weights.exact + index * weights.columns, column)
        return value

    def _outlier(self, row: Any, index: int) -> Any:
        exact = self.source.exact
        assert exact is not None
        place = index if self.source.kept else self.weights.outliers[index]
        return load(self.memory, exact.offset + row * exact.stride + place)

    def _row_of(self, offset: int, column: Any) -> Any:
        return load_vector(self.values, offset + column, self.lanes)


def instructions(rows: int, columns: int, dot: Dot, tile: Tile) -> int:
    """How many multiplying instructions the code of a product has, at least: inner loops of every kind of tile."""
    full, rest = panels(pad(columns, dot.lanes), tile, dot.lanes)
    heights = [tile.rows] * (rows >= tile.rows) + [rows % tile.rows] * (rows % tile.rows > 0)
    widths = [tile.vectors] * (full > 0) + [rest] * (rest > 0)
    return sum(dot.count(Tile(rows=r, vectors=v)) for r in heights for v in widths)
