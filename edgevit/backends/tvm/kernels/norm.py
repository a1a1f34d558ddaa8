"""LayerNorm, whose rows go to a Linear's input in float32 or int8; see norm_neon.py for int8 on NEON."""

from __future__ import annotations

import operator
from typing import Any

from edgevit.backends.tvm.codegen.ahead import LINE, NORM_LINES, Ahead
from edgevit.backends.tvm.codegen.code import (
    Code,
    buffer,
    lane_sum,
    literal,
    load_vector,
    number,
    pairwise,
    rsqrt,
    splat,
)
from edgevit.backends.tvm.codegen.integers import Matrix, put
from edgevit.backends.tvm.codegen.layout import Alive, Place
from edgevit.backends.tvm.codegen.narrow import put_vectors
from edgevit.backends.tvm.codegen.schedules import BY_LANE, Isa
from edgevit.backends.tvm.codegen.threads import NORM_STEPS, each, threads_for
from edgevit.backends.tvm.kernels.common import alive_rows

OTHERS = 8  # registers that LayerNorm needs beside a row
SQUARES = 4  # sums of squares beside each other, so that none waits for the one before


def layer_norm(
    isa: Isa,
    arena: int,
    blob: int,
    source: Place,
    target: Matrix,
    width: int,
    scale: int,
    shift: int,
    eps: float,
    groups: int = 1,
    runs: int = 1,
    alive: Alive | None = None,
) -> Any:
    """Compute target = LN(source) * scale + shift, row by row.

    `width` of a row's columns count, the others are 0 and stay 0. With `groups`, every row is so many rows beside each
    other, each padded to whole vectors. With `runs`, a row is so many runs of values joined, each padded likewise.
    """
    code, memory, values = Code(), buffer("arena", arena), buffer("weights", blob)
    given, there = alive_rows(code, alive, source.rows)
    ahead = Ahead(code, isa, values, blob)
    norm_rows(code, isa, memory, values, source, target, width, scale, shift, eps, groups, runs, there, ahead)
    return code.function([memory, values, *given])


def norm_rows(
    code: Code,
    isa: Isa,
    memory: Any,
    values: Any,
    source: Place,
    target: Matrix,
    width: int,
    scale: int,
    shift: int,
    eps: float,
    groups: int = 1,
    runs: int = 1,
    there: Any = None,
    ahead: Ahead | None = None,
) -> None:
    """Emit the body of `layer_norm`, for kernels that do more.

    Of the rows, `there` exist (None: all); `ahead` asks for what lies behind the norm's own weights.
    """
    lanes = isa.lanes
    vectors = -(-source.width // lanes)
    threads = threads_for(isa.threads, source.rows * groups * vectors * NORM_STEPS)
    with each(code, threads, source.rows, there) as row:
        if ahead is not None:
            ahead.lines(max(scale, shift) + vectors * lanes + row * (NORM_LINES * LINE), NORM_LINES)
        with code.loop(groups) as group:
            start = group * (vectors * lanes)
            base = source.offset + row * source.stride + start

            def normed(centred: Any, scaled: Any, column: Any) -> Any:
                y = centred * splat(scaled, lanes) * load_vector(values, scale + column, lanes)
                return y + load_vector(values, shift + column, lanes)

            if lanes > BY_LANE and runs == 1 and vectors <= isa.registers - OTHERS:
                centred, scaled = centred_row(code, memory, base, vectors, width, eps, lanes)
                whole_row = [normed(x, scaled, v * lanes) for v, x in enumerate(centred)]
                put_vectors(code, memory, values, target, row, start, whole_row, lanes)
            else:
                mean, scaled = moments(code, memory, base, source.width, width, eps, lanes, runs)
                with code.loop(vectors) as v:
                    x = load_vector(memory, base + v * lanes, lanes) - splat(mean, lanes)
                    put(code, memory, values, target, row, start + v * lanes, normed(x, scaled, v * lanes), lanes)


def centred_row(
    code: Code, memory: Any, base: Any, vectors: int, width: int, eps: float, lanes: int
) -> tuple[list[Any], Any]:
    """Return a row minus its mean, in registers, and 1 / sqrt(variance + eps); see `moments`."""
    row = [code.let(load_vector(memory, base + v * lanes, lanes)) for v in range(vectors)]
    mean = code.let(splat(lane_sum(code, pairwise(code, operator.add, row), lanes) * number(1 / width), lanes))
    centred = [code.let(x - mean) for x in row]
    if rest := width % lanes:
        used = literal([float(lane < rest) for lane in range(lanes)])
        centred[width // lanes] = code.let(centred[width // lanes] * used)
    squares = [code.register(splat(0.0, lanes)) for _ in range(min(SQUARES, vectors))]
    for index, x in enumerate(centred[: -(-width // lanes)]):
        cell = squares[index % len(squares)]
        cell.set(cell.value + x * x)
    total = lane_sum(code, pairwise(code, operator.add, [cell.value for cell in squares]), lanes)
    return centred, code.let(rsqrt(total * number(1 / width) + number(eps)))


def moments(
    code: Code, memory: Any, base: Any, columns: int, width: int, eps: float, lanes: int, runs: int = 1
) -> tuple[Any, Any]:
    """Return (mean, 1 / sqrt(variance + eps)) of `width` values among `columns`, the others being 0.

    The values are the first ones of each of `runs` equal parts of the columns.
    """
    vectors = -(-columns // lanes)
    sums = code.register(splat(0.0, lanes))
    with code.loop(vectors) as v:
        sums.set(sums.value + load_vector(memory, base + v * lanes, lanes))
    mean = code.let(lane_sum(code, sums.value, lanes) * number(1 / width))
    squares = code.register(splat(0.0, lanes))
    full, rest = divmod(width // runs, lanes)
    for run in range(runs):
        start = base + run * (columns // runs)
        with code.loop(full) as v:
            centred = code.let(load_vector(memory, start + v * lanes, lanes) - splat(mean, lanes))
            squares.set(squares.value + centred * centred)
        if rest:
            # Left out, not taken off afterwards: that would leave less than nothing where the mean is large.
            used = literal([float(lane < rest) for lane in range(lanes)])
            centred = code.let((load_vector(memory, start + full * lanes, lanes) - splat(mean, lanes)) * used)
            squares.set(squares.value + centred * centred)
    total = lane_sum(code, squares.value, lanes)
    return mean, code.let(rsqrt(total * number(1 / width) + number(eps)))
