"""A branch's gate, and what is added to the stream where the branch does not run."""

from __future__ import annotations

from edgevit.backends.tvm.codegen.layout import pad_columns
from edgevit.backends.tvm.kernels import common, pooling
from edgevit.backends.tvm.kernels.merge import Sizes
from edgevit.backends.tvm.parts.stage import Shared, StageWriter, alive_of
from edgevit.program.spec import BranchSpec


def gate(
    shared: Shared, stage: StageWriter, branch: BranchSpec, index: int, read: int, sizes: Sizes | None = None
) -> None:
    """Decide whether the branch runs: the only kernel returns it. In a mean, tokens count as `sizes` says."""
    assert branch.gate is not None
    spec = shared.spec
    prefix = spec.stem.prefix
    pooled = shared.stream.first(1) if branch.gate.pool == "prefix" else shared.stream.first(read).after(prefix)
    mean = branch.gate.pool == "mean"
    weighed = (sizes.patches,) if sizes is not None and mean else ()
    work = shared.arena.place(1, spec.dim)
    weights = shared.program.weights
    offset = stage.blob.add(pad_columns(weights[f"{branch.name}.gate.weight"], shared.stream.stride))
    # In float64: the sum of two float32 is then rounded once, as in the other backends' graphs.
    limit = branch.gate.threshold - float(weights[f"{branch.name}.gate.bias"][0])
    stage.call(
        "gate",
        pooling.decide,
        len(spec.branches),
        pooled,
        work,
        offset,
        limit,
        spec.norm_eps,
        index,
        *weighed,
        takes=("arena", "weights", "effort", "gates"),
        alive=alive_of(sizes, read) if mean else None,
    )


def skipped(shared: Shared, stage: StageWriter, branch: BranchSpec, rows: int, sizes: Sizes | None = None) -> None:
    """Compute stream[:rows] += the branch's skip rows."""
    values = pad_columns(shared.program.weights[f"{branch.name}.skip"], shared.stream.stride)
    offset = stage.blob.add(values)
    prefix, alive = shared.spec.stem.prefix, alive_of(sizes, rows)
    stage.call("skip", common.add_skip_rows, shared.stream.first(rows), offset, prefix, alive=alive)
