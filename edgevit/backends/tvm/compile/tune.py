"""Search for the fastest register tile per product, on this machine, in bounded time.

Candidates come in a fixed order and are timed interleaved by process CPU time, so that other load hits all of them
alike. The default keeps its place unless another one is faster by more than such timings scatter. What was found is
kept per processor, instruction set and version, and not searched again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import __version__
from edgevit.backends.tvm.codegen.dots import Dot
from edgevit.backends.tvm.codegen.integers import place_integers
from edgevit.backends.tvm.codegen.layout import Arena, Blob, pack
from edgevit.backends.tvm.codegen.schedules import (
    Isa,
    Product,
    Tile,
    default_tile,
    pad,
    tiles,
)
from edgevit.backends.tvm.compile.emit import lower
from edgevit.backends.tvm.kernels import int8
from edgevit.backends.tvm.kernels.common import Epilogue, Weights, product
from edgevit.backends.tvm.parts.stage import Choose
from edgevit.backends.tvm.run.canary import versions
from edgevit.backends.tvm.run.runner import CPUINFO, aligned
from edgevit.errors import OutputError, TargetError
from edgevit.program.program import Program
from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from edgevit.util import atomic, strict_json
from edgevit.util.machines import MACHINES
from edgevit.util.progress import track
from edgevit.util.resources import user_cache

CANDIDATES = 5
ROUNDS = 20
MARGIN = 0.98
LEAST_S, MOST_CALLS = 5e-4, 1000

Run = Callable[[], object]


def products(program: Program, isa: Isa, plan: QuantPlan | None = None) -> tuple[Product, ...]:
    """Return every distinct product of a Program under a plan, those with the most multiply-adds first."""
    found: dict[Product, None] = {}

    def note(isa: Isa, product: Product) -> Tile:
        found[product] = None
        return default_tile(isa, product)

    lower(program, isa, plan, choose=note)
    return tuple(sorted(found, key=lambda p: -p.rows * p.columns * p.depth))


def tuned(program: Program, isa: Isa, plan: QuantPlan | None, seconds: float, *, cache: Path | None = None) -> Choose:
    """The tiles of a Program's products that were found on this machine, now or before, and default ones for the rest.

    Args:
        program: what is to be compiled.
        isa: an instruction set of this machine.
        plan: how it is quantized.
        seconds: of process CPU time that may go into products which nobody has searched yet.
        cache: the folder where what was found is kept.

    Raises:
        TargetError: this machine does not run such code.
        OutputError: the disk refuses.
    """
    require_here(isa)
    path = _path(isa, cache)
    wanted = products(program, isa, plan)
    table = _read(path, isa, wanted)
    left = [product for product in wanted if product not in table]
    found = search(track(left, "Searching for tiles"), isa, seconds) if left else {}
    if found:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.sweep(path.parent)
            labelled = {_label(product): [tile.rows, tile.vectors] for product, tile in found.items()}
            strict_json.write_atomic(path, json.dumps({**_content(path), **labelled}, indent=1))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return chosen({**table, **found})


def kept(program: Program, isa: Isa, plan: QuantPlan | None, *, cache: Path | None = None) -> dict[Product, Tile]:
    """Return the tiles of a Program's products that were found on this machine before."""
    return _read(_path(isa, cache), isa, products(program, isa, plan))


def _path(isa: Isa, cache: Path | None) -> Path:
    return (cache or user_cache()) / f"tvm-tiles-{_machine_key(isa)}.json"


def require_here(isa: Isa) -> None:
    """Refuse to search tiles for an instruction set that this machine does not run.

    Raises:
        TargetError: it does not.
    """
    machines, present = MACHINES[isa.target["mtriple"].split("-")[0]], set(_cpuinfo().split())
    lacking = [flag for flag in isa.flags if present and flag not in present]
    if platform.machine() not in machines or lacking:
        without = f", without {' '.join(lacking)}" if lacking else ""
        raise TargetError(
            f"tiles for {isa.name} are searched by running them, which this machine ({platform.machine()}{without}) "
            "cannot do; omit --tune, or build on the device"
        )


def _cpuinfo() -> str:
    """Return what the system tells of its processors; nothing where it does not."""
    return CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""


def _machine_key(isa: Isa) -> str:
    """Return what a search's outcome depends on beside the product."""
    named = ("model name", "CPU implementer", "CPU part")
    cpu = {line for line in _cpuinfo().splitlines() if line.startswith(named)}
    told = repr((sorted(cpu), isa.name, sorted(map(str, isa.target.items())), versions(), __version__))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _label(product: Product) -> str:
    kind = "float" if product.dot is None else product.dot.label
    return f"{kind} {product.rows} x {product.columns} x {product.depth}"


def _content(path: Path) -> dict[str, Any]:
    """Return what a cache file holds; nothing where it is damaged."""
    try:
        data = strict_json.read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _read(path: Path, isa: Isa, wanted: Iterable[Product]) -> dict[Product, Tile]:
    """Return the kept tiles of these products; what fits no registers counts as not kept."""
    content = _content(path)
    # A default need not be among the tiles that are searched.
    possible = ((product, tile) for product in wanted for tile in (default_tile(isa, product), *tiles(isa, product)))
    return {product: tile for product, tile in possible if content.get(_label(product)) == [tile.rows, tile.vectors]}


def search(
    wanted: Iterable[Product],
    isa: Isa,
    seconds: float,
    *,
    prepare: Callable[[Isa, Product, Tile], Run] | None = None,
    clock: Callable[[], float] = time.process_time,
    progress: Callable[[Product], None] = lambda _: None,
) -> dict[Product, Tile]:
    """Return the fastest tile of each product; those that the time did not suffice for are left out.

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
        calls = _calls(runs[0], clock)
        for _ in range(ROUNDS):
            for index, run in enumerate(runs):
                best[index] = min(best[index], _timed(run, calls, clock))
        fastest = min(range(len(runs)), key=best.__getitem__)
        table[shape] = candidates[fastest] if best[fastest] < MARGIN * best[0] else default
        progress(shape)
    return table


def _calls(run: Run, clock: Callable[[], float]) -> int:
    """Return how often to call at once, so that what is timed is long beside the clock's own steps."""
    run()  # the first one reads code and memory for the first time
    return int(min(max(LEAST_S / max(_timed(run, 1, clock), 1e-9), 1), MOST_CALLS))


def _timed(run: Run, calls: int, clock: Callable[[], float]) -> float:
    begin = clock()
    for _ in range(calls):
        run()
    return clock() - begin


def chosen(table: Mapping[Product, Tile]) -> Choose:
    """Return the tile of a searched product, else the default."""
    return lambda isa, product: table.get(product) or default_tile(isa, product)


def kernel(isa: Isa, shape: Product, tile: Tile) -> Run:
    """Compile one product and return a call of it on random values."""
    import tvm_ffi

    from edgevit.backends.tvm.compile.passes import compile_kernels

    rng = np.random.default_rng(0)
    function, arena, weights = _float(isa, shape, tile, rng) if shape.dot is None else _int8(isa, shape, tile, rng)
    compiled: Any = compile_kernels({"product": function}, isa.target)["product"]
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
    source = place_integers(arena, blob, shape.rows, shape.depth, dot.depth, dot.stored, plan, entry, dot.together)
    target = arena.place(shape.rows, shape.columns)
    weight = rng.standard_normal((shape.depth, shape.columns)).astype(np.float32)
    weights = int8.add_weights(blob, weight, None, plan, entry, dot, tile)
    function = int8.product(isa, arena.size, blob.size, source, target, weights, dot, tile, Epilogue())
    return function, arena, blob.array()
