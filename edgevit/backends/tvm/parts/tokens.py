"""Points where tokens are merged: one kernel each, beside the sizes that it leaves for whoever reads the stream."""

from __future__ import annotations

import numpy as np

from edgevit.backends.tvm.codegen.layout import pad_columns
from edgevit.backends.tvm.codegen.schedules import Product
from edgevit.backends.tvm.kernels import merge as kernels
from edgevit.backends.tvm.parts.stage import Shared, StageWriter
from edgevit.program.spec import MergeSpec
from edgevit.program.tokens import halves


def merge(shared: Shared, stage: StageWriter, point: MergeSpec, rows: int) -> None:
    """Merge tokens of stream[:rows] where they are; `rows - count` are left."""
    spec, isa, sizes = shared.spec, shared.isa, shared.sizes
    assert sizes is not None
    patches, dim = rows - spec.stem.prefix, spec.dim
    first, second = halves(patches)
    work = kernels.scratch(shared.arena, patches, dim, isa.lanes)
    tile = shared.choose(isa, Product(rows=first, columns=second, depth=dim))
    logs = np.array([log(np.arange(1, spec.patches + 1)) for log in (np.log, np.log2)])
    stage.call(
        "merge",
        kernels.merge,
        shared.stream.first(rows),
        spec.stem.prefix,
        point.count,
        sizes,
        point is spec.merges[0],
        work,
        tile,
        stage.blob.add(pad_columns(logs, sizes.bias.stride)),
        spec.norm_eps,
    )
