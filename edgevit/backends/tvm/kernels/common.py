"""Kernels on the arena: products with fused epilogues, skip rows, and the image's patches.

Every kernel is one function over the whole arena, which it reads and writes at places fixed when it is built, and one
array of weights. Shapes: M rows, K depth, N columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgevit.backends.tvm.codegen.ahead import Ahead
from edgevit.backends.tvm.codegen.code import (
    Code,
    Register,
    activate,
    buffer,
    integer,
    lanes_of,
    load,
    load_lanes,
    load_vector,
    smaller,
    splat,
    tensor,
    to_float,
    whole,
)
from edgevit.backends.tvm.codegen.integers import Integers, Matrix
from edgevit.backends.tvm.codegen.layout import Alive, Place
from edgevit.backends.tvm.codegen.narrow import put_vectors
from edgevit.backends.tvm.codegen.schedules import BY_LANE, Isa, Tile
from edgevit.backends.tvm.codegen.threads import (
    PIXEL_STEPS,
    Part,
    each,
    over_panels,
    row_tiles,
    threads_for,
)
from edgevit.program.spec import Activation


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A packed `[depth, columns]` matrix (columns whole vectors) in a blob, with where its bias row starts."""

    offset: int
    depth: int
    columns: int
    bias: int | None = None


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """What happens to a product before it is stored: bias, then activation, then additions.

    `onto` adds the value that is there already (the residual stream); `table` adds a `[M, N]` matrix of the blob that
    starts there.
    """

    activation: Activation | None = None
    onto: bool = False
    table: int | None = None


def alive_rows(code: Code, alive: Alive | None, rows: int) -> tuple[list[Any], Any]:
    """Return the parameters that tell how many of `rows` rows exist when a kernel runs, and that number (None: all)."""
    if alive is None:
        return [], None
    tokens = buffer("tokens", alive.points, "int32")
    # Whatever was written there, no kernel leaves the rows that it was built for.
    return [tokens], code.let(smaller(load(tokens, alive.point) + integer(alive.prefix), rows))


def multiply(
    code: Code,
    lanes: int,
    tile: Tile,
    depth: Any,
    left: Callable[[int, Any, int], Any],
    right: Callable[[Any, int], Any],
    start: Callable[[int], Any],
    *,
    along: bool = True,
) -> list[Register]:
    """Return the inner loop of every product: tile.rows x tile.vectors accumulators over `depth` steps.

    Args:
        code: where to.
        lanes: of a vector.
        tile: accumulators.
        depth: steps, a number known here or only when it runs.
        left: (row, k, count) to so many values from `k` on.
        right: (k, vector) to a vector.
        start: vector to what its accumulators start from.
        along: whether `left` can give more than one value.
    """
    sums = [code.register(start(vector)) for _ in range(tile.rows) for vector in range(tile.vectors)]

    def step(k: Any, values: Callable[[int], Any]) -> None:
        columns = [code.let(right(k, vector)) for vector in range(tile.vectors)]
        for row in range(tile.rows):
            broadcast = code.let(values(row))
            for vector, column in enumerate(columns):
                index = row * tile.vectors + vector
                sums[index].set(sums[index].value + broadcast * column)

    # NEON multiplies by one lane of a register: a vector of a row is loaded once for as many steps.
    blocks = whole(depth, lanes) if along and lanes == BY_LANE else 0
    with code.loop(blocks) as block:
        rows = [code.let(left(row, block * lanes, lanes)) for row in range(tile.rows)]
        for lane in range(lanes if not isinstance(blocks, int) or blocks else 0):
            step(block * lanes + lane, lambda row, lane=lane: lanes_of(rows[row], *[lane] * lanes))  # type: ignore[misc]
    with code.loop(depth - blocks * lanes) as k:
        k = k + blocks * lanes
        step(k, lambda row: splat(left(row, k, 1), lanes))
    return sums


def packed(values: Any, base: Any, columns: int, lanes: int) -> Callable[[Any, int], Any]:
    """Return (k, vector) to a vector of a packed panel of `columns` columns."""
    return lambda k, vector: load_vector(values, base + k * columns + vector * lanes, lanes)


def product(
    isa: Isa,
    arena: int,
    blob: int,
    source: Place,
    target: Matrix,
    weights: Weights,
    tile: Tile,
    epilogue: Epilogue,
    alive: Alive | None = None,
) -> Any:
    """Compute target = epilogue(source @ weights + bias); source `[M, K]`, target `[M, N]`."""
    code, memory, values = Code(), buffer("arena", arena), buffer("weights", blob)
    given, there = alive_rows(code, alive, source.rows)
    multiply_rows(code, isa, memory, values, source, target, weights, tile, epilogue, there)
    return code.function([memory, values, *given])


def multiply_rows(
    code: Code,
    isa: Isa,
    memory: Any,
    values: Any,
    source: Place,
    target: Matrix,
    weights: Weights,
    tile: Tile,
    epilogue: Epilogue,
    there: Any = None,
) -> None:
    """The body of `product`, for kernels that do more; `there` as in `over_panels`."""
    depth, lanes = weights.depth, isa.lanes
    width = tile.vectors * lanes
    ahead = Ahead(code, isa, values, int(values.shape[0]))

    def panel(index: Any, vectors: int, part: Part) -> None:
        """A part of the rows of so many vectors of columns."""
        first, base = index * width, weights.offset + index * (width * depth)

        def rows(row: Any, now: Tile) -> None:
            ahead.panel("float32", base, vectors * lanes * depth, source.rows, tile, row, part)
            sums = multiply(
                code,
                lanes,
                now,
                depth,
                lambda r, k, count: load_lanes(memory, source.offset + (row + r) * source.stride + k, count),
                packed(values, base, vectors * lanes, lanes),
                lambda v: (
                    splat(0.0, lanes)
                    if weights.bias is None
                    else load_vector(values, weights.bias + first + v * lanes, lanes)
                ),
            )
            for r in range(now.rows):
                store([cell.value for cell in sums[r * now.vectors : (r + 1) * now.vectors]], row + r, first)

        row_tiles(code, source.rows, Tile(rows=tile.rows, vectors=vectors), rows, part)

    def store(found: list[Any], row: Any, column: Any) -> None:
        finish(code, memory, values, target, weights.columns, epilogue, row, column, found, lanes)

    over_panels(code, isa, tile, (source.rows, weights.columns, depth), panel, there)


def finish(
    code: Code,
    memory: Any,
    values: Any,
    target: Matrix,
    columns: int,
    epilogue: Epilogue,
    row: Any,
    column: Any,
    found: Sequence[Any],
    lanes: int,
) -> None:
    """The end of an epilogue: activation, additions, and vectors of a row of the target from `column` on."""
    ended = [
        finished(code, memory, values, target, columns, epilogue, row, column + index * lanes, value, lanes)
        for index, value in enumerate(found)
    ]
    put_vectors(code, memory, values, target, row, column, ended, lanes)


def finished(
    code: Code,
    memory: Any,
    values: Any,
    target: Matrix,
    columns: int,
    epilogue: Epilogue,
    row: Any,
    column: Any,
    value: Any,
    lanes: int,
) -> Any:
    """Return a vector after activation and additions."""
    if epilogue.activation is not None:
        coarse = isinstance(target, Integers) and target.coarse
        value = activate(code, epilogue.activation, value, lanes, coarse=coarse)
    if epilogue.onto:
        assert isinstance(target, Place)
        value = value + load_vector(memory, target.offset + row * target.stride + column, lanes)
    if epilogue.table is not None:
        value = value + load_vector(values, epilogue.table + row * columns + column, lanes)
    return value


def add_skip_rows(
    isa: Isa, arena: int, blob: int, stream: Place, rows: int, prefix: int, alive: Alive | None = None
) -> Any:
    """Do stream[i] += rows[min(i, prefix)], the rows that stand in for a branch that did not run."""
    code, lanes = Code(), isa.lanes
    memory, values = buffer("arena", arena), buffer("weights", blob)
    given, there = alive_rows(code, alive, stream.rows)

    def add(row: Any, owner: int) -> None:
        with code.loop(stream.stride // lanes) as v:
            place = stream.offset + row * stream.stride + v * lanes
            skip = load_vector(values, rows + owner * stream.stride + v * lanes, lanes)
            code.store_vector(memory, place, load_vector(memory, place, lanes) + skip, lanes)

    for row in range(min(prefix, stream.rows)):
        add(row, row)
    with code.loop(max(stream.rows - prefix, 0) if there is None else there - integer(prefix)) as row:
        add(row + prefix, prefix)
    return code.function([memory, values, *given])


def start(isa: Isa, arena: int, blob: int, stream: Place, rows: int, prefix: int, states: tuple[bool, ...]) -> Any:
    """Write the prefix tokens, `[prefix, stride]` in the blob, into the stream, and the state of every branch."""
    code, lanes = Code(), isa.lanes
    memory, values, decisions = buffer("arena", arena), buffer("weights", blob), buffer("gates", len(states), "uint8")
    with code.loop(prefix * stream.stride // lanes) as v:
        code.store_vector(memory, stream.offset + v * lanes, load_vector(values, rows + v * lanes, lanes), lanes)
    for index, state in enumerate(states):
        code.store(decisions, index, integer(int(state)).astype("uint8"))
    return code.function([memory, values, decisions])


def patches(isa: Isa, arena: int, height: int, width: int, side: int, target: Place) -> Any:
    """Return uint8 pixels of every `side` x `side` patch as one float32 row of `side * side * 3`."""
    code, lanes = Code(), isa.lanes
    image, memory = tensor("image", (1, height, width, 3), "uint8"), buffer("arena", arena)
    flat = code.flat(image, "uint8")
    columns, line, run = width // side, width * 3, side * 3
    threads = threads_for(isa.threads, height * width * PIXEL_STEPS // lanes)
    with each(code, threads, height // side) as r, code.loop(columns) as c, code.loop(side) as y:
        pixels = (r * side + y) * line + c * run
        place = target.offset + (r * columns + c) * target.stride + y * run
        with code.loop(run // lanes) as v:
            x = to_float(load_vector(flat, pixels + v * lanes, lanes), lanes)
            code.store_vector(memory, place + v * lanes, x, lanes)
        with code.loop(run % lanes) as i:
            last = run - run % lanes + i
            code.store(memory, place + last, to_float(load(flat, pixels + last)))
    return code.function([image, memory])


def copy_out(isa: Isa, arena: int, source: Place, count: int, rows: int) -> Any:
    """Return the first `count` values of `rows` rows, joined, as the output `[1, rows * count]`."""
    code = Code()
    memory, logits = buffer("arena", arena), tensor("logits", (1, rows * count))
    flat = code.flat(logits, "float32")
    with code.loop(rows) as row, code.loop(count) as i:
        code.store(flat, row * count + i, load(memory, source.offset + row * source.stride + i))
    return code.function([memory, logits])
