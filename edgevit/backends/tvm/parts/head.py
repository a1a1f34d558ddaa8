"""The head: pooling, norms and the classifier."""

from __future__ import annotations

import numpy as np

from edgevit.backends.tvm.codegen.layout import Place
from edgevit.backends.tvm.kernels import common, pooling
from edgevit.backends.tvm.kernels.common import Epilogue
from edgevit.backends.tvm.kernels.merge import Sizes
from edgevit.backends.tvm.parts.stage import Shared, StageWriter, alive_of, spread


def head(shared: Shared, stage: StageWriter, read: int, sizes: Sizes | None = None) -> None:
    """Compute stream[:read] to logits; in a mean, tokens count as `sizes` says."""
    spec, head = shared.spec, shared.spec.head
    weights = shared.program.weights
    source = shared.stream.first(head.prefix if head.pool == "prefix" else read)
    if head.pool == "mean":
        source = source.after(spec.stem.prefix)
    alive = alive_of(sizes, read) if head.pool == "mean" else None
    if head.norm:
        normed = shared.arena.place(source.rows, spec.dim)
        stage.norm("head.norm", source, normed, alive=alive)
        source = normed
    tokens = source.rows if head.pool == "prefix" else 1
    if head.pool == "mean":
        weighed = () if sizes is None else (sizes.patches,)
        pooled = shared.arena.place(1, spec.dim)
        stage.call("mean", pooling.average, source, pooled, *weighed, takes=("arena",), alive=alive)
        source = pooled
    # Rows lie one behind the other: joined they are one row, with zeros between them where dim is no whole vectors.
    row = Place(offset=source.offset, rows=1, width=tokens * source.stride, stride=tokens * source.stride)
    if head.pooled_norm:
        target = shared.arena.place(1, row.width)
        stage.norm("head.pooled_norm", row, target, tokens=tokens)
        row = target
    if head.linear:
        split = weights["head.weight"].reshape(tokens, spec.dim, -1)
        weight = np.pad(split, ((0, 0), (0, source.stride - spec.dim), (0, 0))).reshape(row.width, -1)
        logits = shared.arena.place(1, head.classes)
        entry = spread(shared.entry("head"), spec.dim, source.stride)
        read_as = stage.quantized(entry, row)
        stage.product("head", entry, read_as, logits, weight, weights["head.bias"], Epilogue())
        stage.call("logits", common.copy_out, logits, head.classes, 1, takes=("arena", "logits"))
    else:
        stage.call("logits", common.copy_out, source, spec.dim, tokens, takes=("arena", "logits"))
