"""A branch's gate, and what replaces the branch where it does not run."""

from __future__ import annotations

import numpy as np

from edgevit.onnx_form import tokens
from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.layers import first_rows
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec


def gate(
    graph: Graph,
    program: Program,
    spec: BranchSpec,
    x: str,
    effort: str,
    read: int,
    sizes: tokens.Sizes | None = None,
) -> str:
    """Return the gate's decision, bool `[1, 1]`: LN(pool(x)) . weight + effort > threshold - bias.

    Every node here is paid for on every run, and between the products of two branches it finds its caches cold: the
    product and `effort` are one Gemm, whose constant side comes first because a constant second operand is packed, 16
    columns wide.
    """
    name, weights = f"{spec.name}.gate", program.weights
    assert spec.gate is not None
    if spec.gate.pool == "prefix":
        row = graph.op("Gather", [x, graph.const("row_0", [0])], f"{name}/row", axis=0)
    else:
        row = tokens.mean_rows(graph, program.spec, f"{name}/patches", f"{name}/row", x, read, sizes)
    ones = graph.const("ones", np.ones(program.spec.dim, dtype=np.float32))
    row = graph.op("LayerNormalization", [row, ones], f"{name}/norm", axis=-1, epsilon=program.spec.norm_eps)
    weight = graph.const(f"{name}.weight", weights[f"{name}.weight"][None])
    logit = graph.op("Gemm", [weight, row, effort], f"{name}/logit", transB=1)
    limit = np.array(spec.gate.threshold - float(weights[f"{name}.bias"][0]), dtype=np.float32)
    return graph.op("Greater", [logit, graph.const(f"{name}/limit", limit)], f"{name}/open")


def skipped(
    graph: Graph,
    program: Program,
    spec: BranchSpec,
    x: str,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None = None,
) -> str:
    """Return what replaces the branch when it does not run: x, plus its skip rows if it has them, in one Gemm."""
    x = first_rows(graph, f"{spec.name}/kept", x, rows, read)
    if not spec.skip:
        return graph.op("Identity", [x], f"{spec.name}/skipped")
    # Of rows that are counted at run time the point has counted these too: a body that did would have no fixed shape
    # when the count is known.
    given = sizes is not None and sizes.owners and rows == read
    owners = sizes.owners if sizes is not None and given else tokens.owners(graph, program.spec, rows)
    skip = graph.const(f"{spec.name}.skip", program.weights[f"{spec.name}.skip"])
    return graph.op("Gemm", [owners, skip, x], f"{spec.name}/skipped")
