"""Several vectors at once to bytes on x86, which narrows two registers into one by half, and clips as it does so.

One vector alone takes two instructions that clip and two that narrow; four together take one of each for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import Code, bits, instruction, integer, lanes_of, load, splat
from edgevit.backends.tvm.codegen.integers import LOW, STEPS, WORD, Integers, Matrix, keep, put

GROUP = 4
# Without AVX, with AVX2 and with AVX-512, by lanes of int32: to int16, to uint8 and to int8.
_TO_16 = {4: "llvm.x86.sse2.packssdw.128", 8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_TO_8 = {
    "uint8": {4: "llvm.x86.sse2.packuswb.128", 8: "llvm.x86.avx2.packuswb", 16: "llvm.x86.avx512.packuswb.512"},
    "int8": {4: "llvm.x86.sse2.packsswb.128", 8: "llvm.x86.avx2.packsswb", 16: "llvm.x86.avx512.packsswb.512"},
}
_ROUNDED = {4: "llvm.x86.sse2.cvtps2dq", 8: "llvm.x86.avx.cvt.ps2dq.256", 16: "llvm.x86.avx512.mask.cvtps2dq.512"}


def rounded(value: Any, lanes: int) -> Any:
    """Return a float vector as int32, rounded to even; what does not fit is the least integer."""
    kind, name = f"int32x{lanes}", _ROUNDED[lanes]
    if lanes < 16:
        return instruction(kind, name, value)
    mask, usual = tirx.const(-1, "int16"), integer(4)  # all lanes; rounding as the processor is set
    return instruction(kind, name, value, tirx.Broadcast(integer(0), lanes), mask, usual)


def narrowed(code: Code, vectors: Sequence[Any], stored: str = "uint8") -> Any:
    """Return four int32 vectors as one of bytes, clipped, in words: float32 of as many lanes."""
    packed = bits(f"float32x{_lanes(vectors)}", _by_parts(code, vectors, stored))
    lanes = _lanes(vectors)
    if lanes == WORD:
        return packed
    # A part has a word of each vector.
    return lanes_of(code.let(packed), *(WORD * (i % (lanes // WORD)) + i // (lanes // WORD) for i in range(lanes)))


def columns_of(code: Code, rows: Sequence[Any]) -> Any:
    """Return four int32 vectors as a word of each of their lanes, of bytes, clipped: float32 of as many lanes."""
    lanes = _lanes(rows)
    # A part has four bytes of each row.
    order = [
        part + WORD * row + column
        for part in range(0, WORD * lanes, 16)
        for column in range(WORD)
        for row in range(WORD)
    ]
    return bits(f"float32x{lanes}", lanes_of(_by_parts(code, rows, "int8"), *order))


def _lanes(vectors: Sequence[Any]) -> int:
    return int(vectors[0].ty.dtype.lanes)


def _by_parts(code: Code, vectors: Sequence[Any], stored: str) -> Any:
    """Return four int32 vectors as one of bytes; registers are narrowed by parts of 16 bytes."""
    lanes = _lanes(vectors)
    pairs = [
        code.let(instruction(f"int16x{2 * lanes}", _TO_16[lanes], *vectors[i : i + 2])) for i in range(0, GROUP, 2)
    ]
    return code.let(instruction(f"{stored}x{WORD * lanes}", _TO_8[stored][lanes], *pairs))


def put_vectors(
    code: Code, memory: Any, values: Any, target: Matrix, row: Any, column: Any, vectors: Sequence[Any], lanes: int
) -> None:
    """Store vectors of a row that lie side by side from `column` on; see `integers.put`."""
    done = 0
    if isinstance(target, Integers) and target.stored == "uint8":
        done = len(vectors) // GROUP * GROUP
        for first in range(0, done, GROUP):
            _put_group(code, memory, values, target, row, column + first * lanes, vectors[first : first + GROUP], lanes)
    for index in range(done, len(vectors)):
        put(code, memory, values, target, row, column + index * lanes, vectors[index], lanes)


def _put_group(
    code: Code, memory: Any, values: Any, target: Integers, row: Any, column: Any, vectors: Sequence[Any], lanes: int
) -> None:
    vectors = [code.let(vector) for vector in vectors]
    for index, vector in enumerate(vectors):
        keep(code, memory, target, row, column + index * lanes, vector, lanes)
    inverse, zero = (splat(load(values, target.grid + i), lanes) for i in (0, 2))
    # Above only: what lies far below every integer becomes the least one, and is clipped as such.
    most = splat(float(LOW[target.stored] + STEPS + 1), lanes)

    def step(vector: Any) -> Any:
        value = vector * inverse + zero
        return code.let(rounded(value if target.bounded else tirx.min(value, most), lanes))

    steps = [step(vector) for vector in vectors]
    place = target.place
    index = place.offset + row * place.stride + tirx.floordiv(integer(column), integer(WORD))
    code.store_vector(memory, index, narrowed(code, steps), lanes)
