"""The pieces of the lowered graph: stem, branch bodies, gates and head, each a function on tensor names.

The residual stream is 2-D, `[tokens, dim]`; a Linear is a Gemm on it. Shapes: N token rows, R rows that are needed
after the branch, D = dim, H heads, E = head_dim, W = H * E.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgevit.onnx_form import tokens
from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.linear import linear
from edgevit.onnx_form.t2t_stem import t2t_tokens
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec, ProgramSpec
from edgevit.schema.quant_plan import QuantPlan


def norm(graph: Graph, program: Program, name: str, x: str, eps: float | None = None) -> str:
    """Return LayerNormalization over the last axis with the Program's `name.weight` and `name.bias`."""
    inputs = [x] + [graph.const(f"{name}.{part}", program.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
    epsilon = program.spec.norm_eps if eps is None else eps
    return graph.op("LayerNormalization", inputs, f"{name}/y", axis=-1, epsilon=epsilon)


def stem(graph: Graph, program: Program, image: str, plan: QuantPlan | None) -> str:
    """uint8 `[1, height, width, 3]` to the stream `[N, D]`; normalisation is folded into the patch Gemm, exactly."""
    spec, weights = program.spec, program.weights
    weight, constant = weights["stem.weight"], weights["stem.pos"] + weights["stem.bias"]
    if spec.stem.kind == "patch":
        x = _patches(graph, spec, image)
        weight, offset = fold_normalisation(spec, weight)
        constant = constant + offset
        entry = plan.linear("stem") if plan else None
        quantized = entry is not None and entry.int8
        if entry is not None and quantized:
            # The kernel sees pixel - zero_point: a zero point near the mean pixel keeps weight rounding from adding up.
            constant = constant + entry.zero_point * weight.sum(axis=0)
        if not quantized:
            x = graph.op("Cast", [x], "stem/float", to=TensorProto.FLOAT)
        x = linear(graph, "stem", x, weight, None, plan, quantized=quantized)
    else:
        x = t2t_tokens(graph, program, image)
        x = linear(graph, "stem", x, weight, None, plan)
    # The bias is added with the position embedding: one addition instead of two.
    x = graph.op("Add", [x, graph.const("stem.pos", constant)], "stem/pos")
    if spec.stem.prefix:
        x = graph.op("Concat", [graph.const("stem.prefix", weights["stem.prefix"]), x], "stem/tokens", axis=0)
    return norm(graph, program, "stem.norm", x) if spec.stem.norm else x


def fold_normalisation(spec: ProgramSpec, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map weights `[P*P*3, D]` for normalised pixels to (weights, offset `[D]`) for pixels 0..255, in float64."""
    mean = np.tile(np.array(spec.image.mean, dtype=np.float64), weight.shape[0] // 3)[:, None]
    std = np.tile(np.array(spec.image.std, dtype=np.float64), weight.shape[0] // 3)[:, None]
    scaled = weight.astype(np.float64) / std
    return (scaled / 255.0).astype(np.float32), -(scaled * mean).sum(axis=0).astype(np.float32)


def _patches(graph: Graph, spec: ProgramSpec, image: str) -> str:
    rows, columns = spec.grid
    p = spec.stem.patch
    x = graph.op("Reshape", [image, graph.const("stem/grid", [rows, p, columns, p * 3])], "stem/rows")
    x = graph.op("Transpose", [x], "stem/transposed", perm=[0, 2, 1, 3])
    return graph.op("Reshape", [x, graph.const("stem/flat", [rows * columns, p * p * 3])], "stem/patches")


def first_rows(graph: Graph, name: str, x: str, rows: int, rows_read: int) -> str:
    """Return the first `rows` of `rows_read` rows; the tensor itself when that is all of them."""
    if rows == rows_read:
        return x
    ends = [graph.const(f"{name}_{part}", value) for part, value in (("start", [0]), ("end", [rows]), ("axis", [0]))]
    return graph.op("Slice", [x, *ends], name)


def branch(
    graph: Graph,
    program: Program,
    spec: BranchSpec,
    x: str,
    plan: QuantPlan | None,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None = None,
) -> str:
    """Return `x + f(norm(x))` of one branch: `read` rows in, the first `rows` of them out."""
    name = spec.name
    if spec.removed:
        return skipped(graph, program, spec, x, rows, read)
    shortcut = first_rows(graph, f"{name}/shortcut", x, rows, read)
    if spec.kind == "mhsa":
        y = _mhsa(graph, program, spec, norm(graph, program, f"{name}.norm", x), plan, rows, read, sizes)
    else:
        y = _ffn(graph, program, spec, norm(graph, program, f"{name}.norm", shortcut), plan)
    return graph.op("Add", [shortcut, y], f"{name}/out")


def skipped(graph: Graph, program: Program, spec: BranchSpec, x: str, rows: int, read: int) -> str:
    """Return what replaces the branch when it does not run: x, plus its skip rows if it has them, in one Gemm."""
    x = first_rows(graph, f"{spec.name}/kept", x, rows, read)
    if not spec.skip:
        return graph.op("Identity", [x], f"{spec.name}/skipped")
    prefix = program.spec.stem.prefix
    owner = np.minimum(np.arange(rows), prefix)
    indicator = (owner[:, None] == np.arange(prefix + 1)).astype(np.float32)
    inputs = [
        graph.const(f"rows_{rows}", indicator),
        graph.const(f"{spec.name}.skip", program.weights[f"{spec.name}.skip"]),
    ]
    return graph.op("Gemm", [*inputs, x], f"{spec.name}/skipped")


def _mhsa(
    graph: Graph,
    program: Program,
    spec: BranchSpec,
    x: str,
    plan: QuantPlan | None,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None,
) -> str:
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
    q = _heads(graph, spec, "q", q, rows, program)
    k = _heads(graph, spec, "k", k, read, program)
    v = _heads(graph, spec, "v", v, read, program)
    scores = tokens.weigh_keys(graph, name, graph.op("MatMul", [q, k], f"{name}/scores"), sizes)
    scores = graph.op("Softmax", [scores], f"{name}/softmax", axis=-1)
    out = graph.op("MatMul", [scores, v], f"{name}/values")
    out = graph.op("Transpose", [out], f"{name}/merged", perm=[0, 2, 1, 3])
    out = graph.op("Reshape", [out, graph.const(f"{name}/flat", [rows, width])], f"{name}/context")
    return linear(graph, f"{name}.proj", out, weights[f"{name}.proj.weight"], weights[f"{name}.proj.bias"], plan)


def _heads(graph: Graph, spec: BranchSpec, part: str, x: str, rows: int, program: Program) -> str:
    """Map `[rows, W]` to `[1, H, rows, E]`, or `[1, H, E, rows]` for the keys; qk-norm applied."""
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


def _ffn(graph: Graph, program: Program, spec: BranchSpec, x: str, plan: QuantPlan | None) -> str:
    name, weights = spec.name, program.weights
    x = linear(graph, f"{name}.fc1", x, weights[f"{name}.fc1.weight"], weights[f"{name}.fc1.bias"], plan)
    x = activation(graph, spec, x)
    return linear(graph, f"{name}.fc2", x, weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"], plan)


def activation(graph: Graph, spec: BranchSpec, x: str) -> str:
    """Return the FFN's activation function."""
    name = f"{spec.name}/act"
    if spec.activation in ("gelu", "gelu_tanh"):
        return graph.op("Gelu", [x], name, approximate="tanh" if spec.activation == "gelu_tanh" else "none")
    if spec.activation == "relu":
        return graph.op("Relu", [x], name)
    factor = 1.702 if spec.activation == "quick_gelu" else 1.0
    scaled = graph.op("Mul", [x, graph.const(f"{name}_factor", np.array(factor, dtype=np.float32))], f"{name}_scaled")
    return graph.op("Mul", [x, graph.op("Sigmoid", [scaled], f"{name}_sigmoid")], name)


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
        row = _mean_patches(graph, program.spec, f"{name}/patches", f"{name}/row", x, read, sizes)
    ones = graph.const("ones", np.ones(program.spec.dim, dtype=np.float32))
    row = graph.op("LayerNormalization", [row, ones], f"{name}/norm", axis=-1, epsilon=program.spec.norm_eps)
    weight = graph.const(f"{name}.weight", weights[f"{name}.weight"][None])
    logit = graph.op("Gemm", [weight, row, effort], f"{name}/logit", transB=1)
    limit = np.array(spec.gate.threshold - float(weights[f"{name}.bias"][0]), dtype=np.float32)
    return graph.op("Greater", [logit, graph.const(f"{name}/limit", limit)], f"{name}/open")


def _mean_patches(
    graph: Graph, spec: ProgramSpec, patches: str, name: str, x: str, read: int, sizes: tokens.Sizes | None
) -> str:
    """Return the mean over patches `[1, D]` of the stream `[read, D]`."""
    x = _patch_rows(graph, spec, patches, x, read)
    if sizes is not None:
        return tokens.mean_patches(graph, spec, name, x, sizes)
    return graph.op("ReduceMean", [x, graph.const("axis_0", [0])], name, keepdims=1)


def _patch_rows(graph: Graph, spec: ProgramSpec, name: str, x: str, read: int) -> str:
    if not spec.stem.prefix:
        return x
    ends = [graph.const(f"{name}_{p}", v) for p, v in (("start", [spec.stem.prefix]), ("end", [read]), ("axis", [0]))]
    return graph.op("Slice", [x, *ends], name)


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
        x = _mean_patches(graph, spec, "head/patches", "head/mean", x, read, sizes)
    elif spec.head.prefix > 1:
        x = graph.op("Reshape", [x, graph.const("head/flat", [1, spec.head.prefix * spec.dim])], "head/joined")
    if spec.head.pooled_norm:
        x = norm(graph, program, "head.pooled_norm", x)
    if spec.head.linear:
        x = linear(graph, "head", x, weights["head.weight"], weights["head.bias"], plan)
    return graph.op("Identity", [x], "logits")
