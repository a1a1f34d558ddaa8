"""Quantized values in the arena, and how kernels store what they computed: as float32, quantized, or both.

Integers lie in the arena's own words of 4 bytes, and are loaded and stored as such: a view of another type would let
the compiler think that the two never meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    bits,
    buffer,
    instruction,
    integer,
    joined,
    lanes_of,
    load,
    load_vector,
    splat,
    tensor,
)
from edgevit.backends.tvm.codegen.layout import Arena, Blob, Place
from edgevit.backends.tvm.codegen.schedules import Isa, pad
from edgevit.backends.tvm.codegen.threads import PIXEL_STEPS, each, threads_for
from edgevit.schema.quant_plan import LinearPlan, QuantPlan

Stored = Literal["uint8", "int8", "int16"]
BYTES: dict[Stored, int] = {"uint8": 1, "int8": 1, "int16": 2}
LOW: dict[Stored, int] = {"uint8": 0, "int8": -128, "int16": 0}
WORD = 4
BLOCK = 4  # words of a vector register of NEON
STEPS = 255
# Float32 from here on count in whole steps: the sum of it and a small number is rounded to even, and the number is in
# the lowest bits.
WHOLE = 1.5 * 2.0**23
FURTHEST = 2.0**30  # steps that surely fit int32
COARSE_STEP = 1 / 128  # `code.activate` when coarse is a sixteenth of it off, at most


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A matrix of `round(x / scale) + zero` within `LOW..LOW + 255`; int8 is what NEON takes.

    Attributes:
        place: where; its columns are words of 4 bytes. Beyond a row's own values lies anything: weights there are 0.
        stored: type of the values.
        grid: where the blob of the stage holds the quantizer; it is data, so that equal branches share their kernels.
        exact: the same matrix in float32, where some of its columns are needed so.
        kept: the columns that `exact` holds, side by side; it holds all of them if there are none.
        bounded: whether no finite input leads to a value here that is `FURTHEST` steps or more from zero.
        coarse: whether a step is so wide that an activation function may be computed coarsely.
        together: how many rows share 16 bytes: each block of so many rows by whole words lies in one piece, and block
            follows block along the rows. 1 is a row after a row.
        scale: of a step, and
        zero: as stored; for what is computed ahead, not for kernels, which equal branches share.
    """

    place: Place
    stored: Stored
    grid: int
    exact: Place | None = None
    kept: tuple[int, ...] = ()
    bounded: bool = False
    coarse: bool = False
    together: int = 1
    scale: float = field(default=0.0, compare=False)
    zero: int = field(default=0, compare=False)

    @property
    def rows(self) -> int:
        return self.place.rows

    def word(self, row: Any, index: Any) -> Any:
        """Return where word `index` of a row lies."""
        return word_of(self.place, self.together, row, index)

    def first(self, rows: int) -> Integers:
        """Return the first `rows` rows."""
        exact = None if self.exact is None else self.exact.first(rows)
        return replace(self, place=self.place.first(rows), exact=exact)


Matrix = Place | Integers


def word_of(place: Place, together: int, row: Any, index: Any) -> Any:
    """Return where word `index` of a row lies in a matrix of words; `together` as in `Integers`."""
    if together == 1:
        return place.offset + row * place.stride + index
    row, index, words = integer(row), integer(index), BLOCK // together
    block = tirx.floordiv(row, integer(together)) * integer(together * place.stride)
    block = block + tirx.floordiv(index, integer(words)) * integer(BLOCK)
    return place.offset + block + tirx.floormod(row, integer(together)) * words + tirx.floormod(index, integer(words))


def zero_point(plan: QuantPlan, entry: LinearPlan, stored: Stored) -> int:
    """Return the plan's zero point for values as they are stored: uint8 and int8 are each other's, shifted by 128."""
    return entry.zero_point + (plan.activations == "int8") * 128 + LOW[stored]


def place_integers(
    arena: Arena,
    blob: Blob,
    rows: int,
    width: int,
    depth: int,
    stored: Stored,
    plan: QuantPlan,
    entry: LinearPlan,
    together: int = 1,
) -> Integers:
    """A place for a Linear's input `[rows, width]`, with its plan's quantizer; rows are whole steps of `depth`."""
    zero = zero_point(plan, entry, stored)
    grid = [1 / entry.scale, zero if stored == "int8" else WHOLE + zero, zero]
    return Integers(
        place=arena.place(pad(rows, together), pad(width, depth) * BYTES[stored] // WORD).first(rows),
        stored=stored,
        grid=blob.add(np.array(grid, dtype=np.float32)),
        exact=arena.place(rows, len(entry.outliers)) if entry.outliers else None,
        kept=entry.outliers,
        coarse=entry.scale >= COARSE_STEP,
        together=together,
        scale=entry.scale,
        zero=zero,
    )


def put(code: Code, memory: Any, values: Any, target: Matrix, row: Any, column: Any, value: Any, lanes: int) -> None:
    """Store a vector of a row; `column` is a multiple of `lanes`, `values` the blob that quantizers are in."""
    if isinstance(target, Place):
        code.store_vector(memory, target.offset + row * target.stride + column, value, lanes)
        return
    value = code.let(value)
    keep(code, memory, target, row, column, value, lanes)
    count = lanes * BYTES[target.stored] // WORD
    index = target.word(row, tirx.floordiv(integer(column), integer(lanes)) * integer(count))
    if target.stored == "int8":
        _store_words(code, memory, index, _saturated(code, values, target, value, lanes), count)
    else:
        store_integers(code, memory, index, _quantized(values, target, value, lanes), target.stored, lanes)


def keep(code: Code, memory: Any, target: Integers, row: Any, column: Any, value: Any, lanes: int) -> None:
    """Store what a vector has of the columns that are kept in float32."""
    for index, kept in enumerate(target.kept):
        assert target.exact is not None
        with code.when(integer(column) == integer(kept // lanes * lanes)):
            place = target.exact.offset + row * target.exact.stride + index
            code.store(memory, place, lanes_of(value, kept % lanes))


def store_integers(code: Code, memory: Any, index: Any, values: Any, stored: Stored, lanes: int) -> None:
    """Store an int32 vector, narrowed, in the arena's words from `index` on."""
    count = lanes * BYTES[stored] // WORD
    _store_words(code, memory, index, tirx.Cast(f"{stored}x{lanes}", values), count)


def _store_words(code: Code, memory: Any, index: Any, packed: Any, count: int) -> None:
    """Store a vector of small integers as so many words."""
    if count > 1:
        code.store_vector(memory, index, bits(f"float32x{count}", packed), count)
    else:
        code.store(memory, index, bits("float32", packed))


def _quantized(values: Any, target: Integers, value: Any, lanes: int) -> Any:
    """Return a float vector in steps of `target`, rounded to even and clipped, in the lowest bits of int32."""
    inverse, zero = (splat(load(values, target.grid + i), lanes) for i in range(2))
    low = WHOLE + LOW[target.stored]
    steps = tirx.max(tirx.min(value * inverse + zero, splat(low + STEPS, lanes)), splat(low, lanes))
    return bits(f"int32x{lanes}", steps)


def _saturated(code: Code, values: Any, target: Integers, value: Any, lanes: int) -> Any:
    """Return the same as int8, four lanes: NEON rounds to even and clips as it converts and narrows."""
    inverse, zero = load(values, target.grid), load(values, target.grid + 1)
    steps = instruction(
        f"int32x{lanes}", f"llvm.aarch64.neon.fcvtns.v{lanes}i32.v{lanes}f32", value * splat(inverse, lanes)
    )
    half = instruction(f"int16x{lanes}", f"llvm.aarch64.neon.sqxtn.v{lanes}i16", steps)
    moved = instruction(
        f"int16x{lanes}",
        f"llvm.aarch64.neon.sqadd.v{lanes}i16",
        half,
        tirx.Broadcast(tirx.Cast("int16", zero), lanes),
    )
    # It narrows eight lanes at once.
    eight = code.let(joined(moved, moved, *range(2 * lanes)))
    return lanes_of(code.let(instruction("int8x8", "llvm.aarch64.neon.sqxtn.v8i8", eight)), *range(lanes))


def quantize(isa: Isa, arena: int, blob: int, source: Place, target: Integers) -> Any:
    """Make target = source, quantized."""
    code, lanes = Code(), isa.lanes
    memory, values = buffer("arena", arena), buffer("weights", blob)
    with code.loop(source.rows) as row, code.loop(-(-source.width // lanes)) as v:
        value = load_vector(memory, source.offset + row * source.stride + v * lanes, lanes)
        put(code, memory, values, target, row, v * lanes, value, lanes)
    return code.function([memory, values])


def pixels(isa: Isa, arena: int, height: int, width: int, side: int, target: Integers) -> Any:
    """Return the pixels of every `side` x `side` patch as one row of integers, `side * side * 3`."""
    code, size = Code(), BYTES[target.stored]
    lanes, scale = WORD * isa.lanes // size, WORD // size
    image, memory = tensor("image", (1, height, width, 3), "uint8"), buffer("arena", arena)
    # Nothing in here reads the arena: a view of another type is safe.
    flat, stored = code.flat(image, "uint8"), code.flat(memory, target.stored)
    columns, line, run = width // side, width * 3, side * 3
    threads = threads_for(isa.threads, height * width * PIXEL_STEPS // isa.lanes)  # lines that move, more than copies
    with each(code, threads, height // side) as r, code.loop(columns) as c, code.loop(side) as y:
        begin = (r * side + y) * line + c * run
        if target.together > 1:
            _pixels_apart(code, flat, memory, target, begin, (r * columns + c, y * run), run)
            run = 0
        place = (target.place.offset + (r * columns + c) * target.place.stride) * scale + y * run
        with code.loop(run // lanes) as v:
            x = _shifted(load_vector(flat, begin + v * lanes, lanes), target.stored, f"x{lanes}")
            code.store_vector(stored, place + v * lanes, x, lanes)
        with code.loop(run % lanes) as i:
            last = run - run % lanes + i
            code.store(stored, place + last, _shifted(load(flat, begin + last), target.stored, ""))
    return code.function([image, memory])


def _pixels_apart(
    code: Code, image: Any, memory: Any, target: Integers, begin: Any, place: tuple[Any, Any], run: int
) -> None:
    """Store `run` pixels from `begin` on at (row, column), where rows share blocks."""
    row, column = place
    if run % (WORD * BLOCK):
        stored = code.flat(memory, "int8")
        with code.loop(run) as i:
            at = target.word(row, tirx.floordiv(column + i, integer(WORD))) * WORD
            at = at + tirx.floormod(column + i, integer(WORD))
            code.store(stored, at, _shifted(load(image, begin + i), "int8", ""))
        return
    words = code.flat(memory, "int32")
    with code.loop(run // (WORD * BLOCK)) as v:
        x = _shifted(load_vector(image, begin + v * (WORD * BLOCK), WORD * BLOCK), "int8", f"x{WORD * BLOCK}")
        packed = code.let(bits(f"int32x{BLOCK}", x))
        for i in range(BLOCK):
            at = target.word(row, tirx.floordiv(integer(column), integer(WORD)) + v * BLOCK + i)
            code.store(words, at, lanes_of(packed, i))


def _shifted(value: Any, stored: Stored, lanes: str) -> Any:
    """Return uint8 as what is stored; turning the highest bit subtracts 128."""
    if stored != "int8":
        return value.astype(stored + lanes)
    high = tirx.const(128, "uint8")
    flipped = tirx.bitwise_xor(value, tirx.Broadcast(high, int(lanes[1:])) if lanes else high)
    return bits(stored + lanes, flipped)
