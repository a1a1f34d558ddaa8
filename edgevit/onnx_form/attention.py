"""Multi-head self-attention of a branch.

Shapes: D = dim, H heads, E = head_dim, W = H * E.
"""

from __future__ import annotations

import numpy as np

from edgevit.onnx_form import tokens
from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.layers import first_rows
from edgevit.onnx_form.linear import linear
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.schema.quant_plan import QuantPlan


def mhsa(
    graph: Graph,
    program: Program,
    spec: BranchSpec,
    x: str,
    plan: QuantPlan | None,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None = None,
) -> str:
    """Map normed rows `[read, D]` to `[rows, D]`: the first `rows` of them attend to all."""
    name, width, weights = spec.name, spec.width, program.weights
    weight, bias = weights[f"{name}.qkv.weight"].copy(), weights[f"{name}.qkv.bias"].copy()
    if not spec.qk_norm:
        # Softmax's scale is folded into the query, exactly up to rounding.
        weight[:, :width] *= np.float32(spec.scale)
        bias[:width] *= np.float32(spec.scale)
    planned = f"{name}.qkv"
    if rows == read:
        qkv = linear(graph, planned, x, weight, bias, plan)
        q, k, v = (f"{name}/{part}" for part in "qkv")
        graph.ops("Split", [qkv], [q, k, v], axis=1, num_outputs=3)
    else:
        head_rows = first_rows(graph, f"{name}/query_rows", x, rows, read)
        q = linear(graph, f"{name}.q", head_rows, weight[:, :width], bias[:width], plan, planned=planned)
        kv = linear(graph, f"{name}.kv", x, weight[:, width:], bias[width:], plan, planned=planned)
        k, v = f"{name}/k", f"{name}/v"
        graph.ops("Split", [kv], [k, v], axis=1, num_outputs=2)
    all_rows = -1 if tokens.varies(sizes) else read
    out_rows = all_rows if rows == read else rows
    q = _heads(graph, spec, "q", q, out_rows, program)
    k = _heads(graph, spec, "k", k, all_rows, program)
    v = _heads(graph, spec, "v", v, all_rows, program)
    scores = tokens.weigh_keys(graph, name, graph.op("MatMul", [q, k], f"{name}/scores"), sizes)
    scores = graph.op("Softmax", [scores], f"{name}/softmax", axis=-1)
    out = graph.op("MatMul", [scores, v], f"{name}/values")
    out = graph.op("Transpose", [out], f"{name}/merged", perm=[0, 2, 1, 3])
    out = graph.op("Reshape", [out, graph.const(f"{name}/flat", [out_rows, width])], f"{name}/context")
    return linear(graph, f"{name}.proj", out, weights[f"{name}.proj.weight"], weights[f"{name}.proj.bias"], plan)


def _heads(graph: Graph, spec: BranchSpec, part: str, x: str, rows: int, program: Program) -> str:
    """Map `[rows, W]` (-1: as many as there are) to `[1, H, rows, E]`, the keys to `[1, H, E, rows]`; with qk-norm."""
    name = f"{spec.name}/{part}"
    shape = graph.const(f"{name}_shape", [1, rows, spec.units, spec.head_dim])
    x = graph.op("Reshape", [x, shape], f"{name}_split")
    if spec.qk_norm and part in "qk":
        weights = {p: program.weights[f"{spec.name}.{part}_norm.{p}"] for p in ("weight", "bias")}
        if part == "q":
            weights = {p: w * np.float32(spec.scale) for p, w in weights.items()}
        inputs = [x] + [graph.const(f"{name}_norm.{p}", w) for p, w in weights.items()]
        x = graph.op("LayerNormalization", inputs, f"{name}_normed", axis=-1, epsilon=program.spec.qk_norm_eps)
    return graph.op("Transpose", [x], f"{name}_heads", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
