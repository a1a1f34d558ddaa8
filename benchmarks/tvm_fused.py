"""What fusing brings: kernels of a dense int8 DeiT-Ti against the same work in passes of its own.

Part of benchmarks/tvm_kernels.py, which times both in turn. What is fused is taken apart where the kernels have a seam:
a LayerNorm whose rows go to memory in float32 and are quantized from there; a product that does the same with its sums,
scaled, for a pass of GELU that quantizes; and attention that writes all scores of a head, for a softmax that is a pass
of its own over them. Either way gives the same outputs, by the same instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgevit.backends.tvm.codegen.code import Code, activate, buffer, load_vector
from edgevit.backends.tvm.codegen.integers import Integers
from edgevit.backends.tvm.codegen.layout import Arena, Place
from edgevit.backends.tvm.codegen.narrow import put_vectors
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.backends.tvm.codegen.threads import row_tiles
from edgevit.backends.tvm.kernels import attention_registers, int8, norm
from edgevit.backends.tvm.kernels.common import Epilogue
from edgevit.backends.tvm.kernels.heads import attend
from edgevit.backends.tvm.parts.stage import Kernel
from edgevit.program.spec import Activation

TARGET = 2  # among the arguments of every kernel that is fused
Build = Callable[[Isa, int], Any]
"""A kernel of (instruction set, elements of the arena)."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A fused kernel, its `calls` in a run, and the ones that do the same in an arena of `arena` elements."""

    what: str
    kernel: str
    fused: Kernel
    apart: tuple[Build, ...]
    arena: int
    calls: int = 1

    @property
    def functions(self) -> dict[str, Build]:
        """Return what to compile: the fused kernel, and the others in order."""
        fused = self.fused
        made: list[Build] = [lambda isa, arena: fused.build(isa, arena, *fused.arguments), *self.apart]
        return {f"{self.kernel}_{'apart' if i else 'fused'}_{i}": build for i, build in enumerate(made)}


@dataclass(frozen=True, kw_only=True)
class Fused:
    """All calls of a fused kernel in one inference, in milliseconds, and of what it replaces."""

    what: str
    kernel: str
    calls: int
    fused_ms: float
    apart_ms: float


def pairs(kernels: Sequence[Kernel], arena: int, lanes: int) -> Iterator[Pair]:
    """Yield the first fused kernel of every kind with what it replaces; calls are those with as many rows."""
    made: dict[Any, Callable[[Kernel, int, int], Pair | None]] = {
        norm.layer_norm: _norm,
        int8.product: _activated,
        attention_registers.attention: _attention,
    }
    seen: set[str] = set()
    for kernel in kernels:
        pair = made[kernel.build](kernel, arena, lanes) if kernel.build in made else None
        if pair is not None and pair.kernel not in seen:
            seen.add(pair.kernel)
            rows = kernel.arguments[TARGET].rows
            yield replace(pair, calls=sum(k.name == kernel.name and k.arguments[TARGET].rows == rows for k in kernels))


def _norm(kernel: Kernel, arena: int, lanes: int) -> Pair | None:
    blob, source, target, *rest = kernel.arguments
    if not isinstance(target, Integers):
        return None
    between, size = _behind(arena, source.rows, source.width, lanes)
    return Pair(
        what="LayerNorm with the quantization behind it",
        kernel=kernel.name,
        fused=kernel,
        apart=(
            lambda isa, arena: norm.layer_norm(isa, arena, blob, source, between, *rest),
            lambda isa, arena: _pass(isa, arena, blob, between, target, None, _stored(isa, between)),
        ),
        arena=size,
    )


def _stored(isa: Isa, rows: Place) -> int:
    """Return how many vectors a LayerNorm stores at once: a row that fits the registers, else each as it is done."""
    vectors = -(-rows.width // isa.lanes)
    return vectors if vectors <= isa.registers - norm.OTHERS else 1


def _activated(kernel: Kernel, arena: int, lanes: int) -> Pair | None:
    blob, source, target, weights, dot, tile, epilogue = kernel.arguments
    if not isinstance(target, Integers) or epilogue.activation is None:
        return None
    between, size = _behind(arena, source.rows, weights.columns, lanes)
    return Pair(
        what="product with activation and quantization in its epilogue",
        kernel=kernel.name,
        fused=kernel,
        apart=(
            lambda isa, arena: int8.product(isa, arena, blob, source, between, weights, dot, tile, Epilogue()),
            lambda isa, arena: _pass(isa, arena, blob, between, target, epilogue.activation, tile.vectors),
        ),
        arena=size,
    )


def _attention(kernel: Kernel, arena: int, lanes: int) -> Pair | None:
    blob, heads, target, work, dot, tile = kernel.arguments
    places, rows = Arena(lanes), heads.query.rows
    places.place(1, arena)
    whole = {name: places.place(rows, getattr(work, name).stride) for name in ("query", "scale", "shares", "inverse")}
    scores = places.place(rows, work.keys.scale.width)
    passes = replace(work, **whole, scores=scores)

    def apart(isa: Isa, arena: int) -> Any:
        def head(code: Code, memory: Any, values: Any, column: Any) -> _Passes:
            made = _Passes(code, memory, values, heads, column, target, passes, tile, dot, 1, None)
            made.isa = isa
            return made

        return attend(isa, arena, blob, heads, Tile(rows=rows, vectors=tile.vectors), head, None, measured=True)

    what = "attention with softmax where scores are summed up"
    return Pair(what=what, kernel=kernel.name, fused=kernel, apart=(apart,), arena=places.size)


class _Passes(attention_registers.InRegisters):
    """One head, step by step: all scores, then softmax of all of them, then all products with values."""

    def _shares(self, rows: int, there: Any, vectors: int) -> None:
        def emit(row: Any, part: Tile) -> None:
            for r, sums in enumerate(self._products(row, part)):
                self._score_row(row + r, row + r, [cell.value for cell in sums])

        tile = Tile(rows=min(attention_registers.score_rows(self.isa, vectors), rows), vectors=vectors)
        row_tiles(self.code, rows, tile, emit)
        with self.code.loop(rows) as row:
            self._softmax_row(row, row, vectors)


def _behind(arena: int, rows: int, width: int, lanes: int) -> tuple[Place, int]:
    """Return a place for float32 behind an arena, and the size of both."""
    places = Arena(lanes)
    places.place(1, arena)
    return places.place(rows, width), places.size


def _pass(
    isa: Isa, arena: int, blob: int, source: Place, target: Integers, activation: Activation | None, together: int
) -> Any:
    """Make target = activation(source), quantized, so many vectors at a time."""
    code, lanes = Code(), isa.lanes
    memory, values = buffer("arena", arena), buffer("weights", blob)
    vectors = -(-source.width // lanes)
    with code.loop(source.rows) as row:
        for first in range(0, vectors, together):
            found = []
            for v in range(first, min(first + together, vectors)):
                x = load_vector(memory, source.offset + row * source.stride + v * lanes, lanes)
                found.append(x if activation is None else activate(code, activation, x, lanes, coarse=target.coarse))
            put_vectors(code, memory, values, target, row, first * lanes, found, lanes)
    return code.function([memory, values])


def brought(found: Sequence[Pair], told: Mapping[str, float]) -> tuple[Fused, ...]:
    """Return what each pair takes in an inference, from the time of one call of each kernel."""
    rows = []
    for pair in found:
        first, *others = (told[symbol] * pair.calls for symbol in pair.functions)
        rows.append(Fused(what=pair.what, kernel=pair.kernel, calls=pair.calls, fused_ms=first, apart_ms=sum(others)))
    return tuple(rows)


def render(rows: Sequence[Fused], total: float) -> list[str]:
    """Return the lines of a table in Markdown; `total` is the time of all kernels, in milliseconds."""
    lines = [
        "What is fused, against the same work in passes of its own with the same outputs, on all rows. Saved: of the "
        "time of all kernels.",
        "",
        "| fused | kernel | calls | fused, ms | apart, ms | saved |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        saved = f"{(row.apart_ms - row.fused_ms) / total:.1%}"
        lines.append(f"| {row.what} | {row.kernel} | {row.calls} | {row.fused_ms:.3f} | {row.apart_ms:.3f} | {saved} |")
    return lines
