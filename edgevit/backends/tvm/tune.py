"""Search for the fastest register tile per product, on this machine, in bounded time.

Candidates come in a fixed order and are timed interleaved by process CPU time, so that other load hits all of them
alike. The default keeps its place unless another one is faster by more than such timings scatter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from edgevit.backends.tvm import int8
from edgevit.backends.tvm.dots import Dot
from edgevit.backends.tvm.emit import lower
from edgevit.backends.tvm.integers import place_integers
from edgevit.backends.tvm.kernels import Epilogue, Weights, product
from edgevit.backends.tvm.layout import Arena, Blob, pack
from edgevit.backends.tvm.runner import aligned
from edgevit.backends.tvm.schedules import Isa, Product, Tile, default_tile, pad, tiles
from edgevit.backends.tvm.stages import Choose
from edgevit.models.program import Program
from edgevit.quantspec import LinearPlan, QuantPlan

CANDIDATES = 5
ROUNDS = 20
MARGIN = 0.98

Run = Callable[[], object]


def products(program: Program, isa: Isa, plan: QuantPlan | None = None) -> tuple[Product, ...]:
    """Every distinct product of a Program under a plan, those with the most multiply-adds first."""
    found: dict[Product, None] = {}

    def note(isa: Isa, product: Product) -> Tile:
        found[product] = None
        return default_tile(isa, product)

    lower(program, isa, plan, choose=note)
    return tuple(sorted(found, key=lambda p: -p.rows * p.columns * p.depth))


def search(
    wanted: Sequence[Product],
    isa: Isa,
    seconds: float,
    *,
    prepare: Callable[[Isa, Product, Tile], Run] | None = None,
    clock: Callable[[], float] = time.process_time,
    progress: Callable[[Product], None] = lambda _: None,
) -> dict[Product, Tile]:
    """The fastest tile of each product; those that the time did not suffice for are left out.

    Args:
        wanted: products, the most important first.
        isa: an instruction set of this machine.
        seconds: of process CPU time, after which no further product is begun.
        prepare: compiles one candidate; what it returns is timed.
        clock: what to time with.
        progress: called after each product.
    """
    prepare = prepare or kernel
    end, table = clock() + seconds, {}
    for shape in wanted:
        if clock() >= end:
            break
        default = default_tile(isa, shape)
        others = islice((tile for tile in tiles(isa, shape) if tile != default), CANDIDATES - 1)
        candidates = (default, *others)
        runs = [prepare(isa, shape, tile) for tile in candidates]
        best = [float("inf")] * len(runs)
        for _ in range(ROUNDS):
            for index, run in enumerate(runs):
                begin = clock()
                run()
                best[index] = min(best[index], clock() - begin)
        fastest = min(range(len(runs)), key=best.__getitem__)
        table[shape] = candidates[fastest] if best[fastest] < MARGIN * best[0] else default
        progress(shape)
    return table


def chosen(table: Mapping[Product, Tile]) -> Choose:
    """The tile of a searched product, else the default."""
    return lambda isa, product: table.get(product) or default_tile(isa, product)


def kernel(isa: Isa, shape: Product, tile: Tile) -> Run:
    """Compile one product and return a call of it on random values."""
    import tvm
    import tvm_ffi

    rng = np.random.default_rng(0)
    function, arena, weights = _float(isa, shape, tile, rng) if shape.dot is None else _int8(isa, shape, tile, rng)
    module = tvm.IRModule({"product": function.with_attr("global_symbol", "product")})
    compiled: Any = tvm.compile(module, target=tvm.target.Target(dict(isa.target)))["product"]
    memory, values = aligned((arena.size,), np.float32), aligned((weights.size,), np.float32)
    memory[:], values[:] = rng.standard_normal(arena.size), weights
    arguments = [tvm_ffi.from_dlpack(array) for array in (memory, values)]
    return lambda: compiled(*arguments)


def _float(isa: Isa, shape: Product, tile: Tile, rng: np.random.Generator) -> tuple[Any, Arena, np.ndarray]:
    arena, blob, columns = Arena(isa.lanes), Blob(), pad(shape.columns, isa.lanes)
    source, target = arena.place(shape.rows, shape.depth), arena.place(shape.rows, columns)
    offset = blob.add(pack(rng.standard_normal((shape.depth, columns)), tile, isa.lanes))
    weights = Weights(offset=offset, depth=shape.depth, columns=columns)
    return product(isa, arena.size, blob.size, source, target, weights, tile, Epilogue()), arena, blob.array()


def _int8(isa: Isa, shape: Product, tile: Tile, rng: np.random.Generator) -> tuple[Any, Arena, np.ndarray]:
    dot = shape.dot
    assert isinstance(dot, Dot)
    arena, blob, entry = Arena(isa.lanes), Blob(), LinearPlan(name="product", int8=True)
    plan = QuantPlan(linears=(entry,))
    source = place_integers(arena, blob, shape.rows, shape.depth, dot.depth, dot.stored, plan, entry)
    target = arena.place(shape.rows, shape.columns)
    weight = rng.standard_normal((shape.depth, shape.columns)).astype(np.float32)
    weights = int8.add_weights(blob, weight, None, plan, entry, dot, tile)
    function = int8.product(isa, arena.size, blob.size, source, target, weights, dot, tile, Epilogue())
    return function, arena, blob.array()
