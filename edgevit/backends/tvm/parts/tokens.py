"""Points where tokens are merged: one kernel each, beside the sizes that it leaves for whoever reads the stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.backends.tvm.codegen.layout import Alive, pad_columns
from edgevit.backends.tvm.codegen.schedules import Product
from edgevit.backends.tvm.kernels import merge as kernels
from edgevit.backends.tvm.kernels.merge import Pairs, Sizes
from edgevit.backends.tvm.parts.stage import Shared, StageWriter
from edgevit.program.spec import MergeSpec, ProgramSpec, shift_name
from edgevit.program.tokens import MERGE_EFFORT, halves


def merge(shared: Shared, stage: StageWriter, point: MergeSpec, rows: int, sizes: Sizes | None = None) -> None:
    """Merge tokens of stream[:rows] where they are; `sizes` as the point before left them."""
    spec, isa = shared.spec, shared.isa
    assert shared.sizes is not None
    bias = shared.sizes.bias
    patches, dim, stride = rows - spec.stem.prefix, spec.dim, shared.stream.stride
    first, second = halves(patches)
    work = kernels.scratch(shared.arena, patches, dim, isa.lanes, shared.choices[point.after])
    tile = shared.choose(isa, Product(rows=first, columns=second, depth=dim))
    logs = np.array([log(np.arange(1, spec.patches + 1)) for log in (np.log, np.log2)])
    stage.call(
        "merge",
        kernels.merge,
        shared.stream.first(rows),
        spec.stem.prefix,
        _pairs(point, dim),
        sizes or shared.sizes,
        sizes is None,
        work,
        tile,
        stage.blob.add(pad_columns(logs, bias.stride)),
        spec.norm_eps,
        stage.blob.add(pad_columns(shared.program.weights[shift_name(point)], stride)) if point.shift else None,
        *([alive(spec, point)] if spec.adaptive else []),
        takes=("arena", "weights", *["effort"][: point.threshold is not None], *["tokens"][: spec.adaptive]),
    )


def after(shared: Shared, point: MergeSpec) -> Sizes:
    """Return the sizes of the stream's tokens after a point."""
    assert shared.sizes is not None
    reached = shared.spec.merges[: shared.spec.merges.index(point) + 1]
    follows = any(p.threshold is not None for p in reached)
    return replace(shared.sizes, alive=alive(shared.spec, point)) if follows else shared.sizes


def alive(spec: ProgramSpec, point: MergeSpec) -> Alive:
    """Return where a run says how many tokens are left after a point."""
    return Alive(prefix=spec.stem.prefix, point=spec.merges.index(point), points=len(spec.merges))


def _pairs(point: MergeSpec, dim: int) -> Pairs:
    """Return how many pairs are merged; the product of two rows that LayerNorm gave is `dim` times their cosine."""
    if point.threshold is None:
        return Pairs(count=point.count)
    limit, gain = dim * point.threshold, dim * MERGE_EFFORT
    return Pairs(count=point.count, least=point.least, step=point.step, whole=point.whole, limit=limit, gain=gain)
