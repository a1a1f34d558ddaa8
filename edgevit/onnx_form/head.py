"""The head: pooling, norms and the classifier."""

from __future__ import annotations

from edgevit.onnx_form import tokens
from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.layers import first_rows, norm
from edgevit.onnx_form.linear import linear
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan


def head(
    graph: Graph, program: Program, x: str, plan: QuantPlan | None, read: int, sizes: tokens.Sizes | None = None
) -> str:
    """Map stream `[read, D]` to logits `[1, classes]`."""
    spec, weights = program.spec, program.weights
    if spec.head.pool == "prefix":
        x = first_rows(graph, "head/rows", x, spec.head.prefix, read)
    if spec.head.norm:
        x = norm(graph, program, "head.norm", x)
    if spec.head.pool == "mean":
        x = tokens.mean_rows(graph, spec, "head/patches", "head/mean", x, read, sizes)
    elif spec.head.prefix > 1:
        x = graph.op("Reshape", [x, graph.const("head/flat", [1, spec.head.prefix * spec.dim])], "head/joined")
    if spec.head.pooled_norm:
        x = norm(graph, program, "head.pooled_norm", x)
    if spec.head.linear:
        x = linear(graph, "head", x, weights["head.weight"], weights["head.bias"], plan)
    return graph.op("Identity", [x], "logits")
