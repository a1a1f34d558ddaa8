"""T2T-ViT's stem in ONNX: soft splits as row gathers, two token-to-token attention stages (arXiv 2101.11986).

Shapes: T tokens of a stage, C columns of its input, K = token_dim. The stages run in float.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.linear import linear
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan


def embed(graph: Graph, program: Program, image: str, plan: QuantPlan | None) -> str:
    """Map uint8 `[1, height, width, 3]` to `[patches, D]` with positions."""
    weights = program.weights
    x = linear(graph, "stem", t2t_tokens(graph, program, image), weights["stem.weight"], None, plan)
    # The bias is added with the position embedding: one addition instead of two.
    return graph.op("Add", [x, graph.const("stem.pos", weights["stem.pos"] + weights["stem.bias"])], "stem/pos")


def t2t_tokens(graph: Graph, program: Program, image: str) -> str:
    """Map uint8 `[1, height, width, 3]` to `[patches, 9 * token_dim]`, everything before the stem's Linear."""
    spec = program.spec
    height, width, k = spec.image.height, spec.image.width, spec.stem.token_dim
    mean, std = (np.array(v, dtype=np.float64) for v in (spec.image.mean, spec.image.std))
    x = graph.op("Cast", [image], "stem/float", to=TensorProto.FLOAT)
    x = graph.op("Mul", [x, graph.const("stem/scale", (1 / (255 * std)).astype(np.float32))], "stem/scaled")
    x = graph.op("Sub", [x, graph.const("stem/shift", (mean / std).astype(np.float32))], "stem/normalised")
    x = _unfold(graph, "stem/split0", x, (height, width, 3), 7, 4, 2)
    rows, columns = height // 4, width // 4
    x = _attention(graph, program, "stem.attention1", x, rows * columns)
    x = graph.op("Reshape", [x, graph.const("stem/map1", [1, rows, columns, k])], "stem/map1_y")
    x = _unfold(graph, "stem/split1", x, (rows, columns, k), 3, 2, 1)
    rows, columns = rows // 2, columns // 2
    x = _attention(graph, program, "stem.attention2", x, rows * columns)
    x = graph.op("Reshape", [x, graph.const("stem/map2", [1, rows, columns, k])], "stem/map2_y")
    return _unfold(graph, "stem/split2", x, (rows, columns, k), 3, 2, 1)


def _unfold(
    graph: Graph, name: str, x: str, shape: tuple[int, int, int], kernel: int, stride: int, padding: int
) -> str:
    """`[1, height, width, C]` to `[T, kernel * kernel * C]`, columns in (row, column, channel) order; zero padding."""
    height, width, channels = shape
    pads = graph.const(f"{name}_pads", [0, padding, padding, 0, 0, padding, padding, 0])
    x = graph.op("Pad", [x, pads], f"{name}_padded")
    steps = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    rows, columns = (np.arange(n)[:, None] * stride + np.arange(kernel) for n in steps)
    x = graph.op("Gather", [x, graph.const(f"{name}_rows", rows.reshape(-1))], f"{name}_by_row", axis=1)
    x = graph.op("Gather", [x, graph.const(f"{name}_columns", columns.reshape(-1))], f"{name}_by_column", axis=2)
    split = graph.const(f"{name}_shape", [steps[0], kernel, steps[1], kernel * channels])
    x = graph.op("Reshape", [x, split], f"{name}_split")
    x = graph.op("Transpose", [x], f"{name}_transposed", perm=[0, 2, 1, 3])
    flat = graph.const(f"{name}_flat", [steps[0] * steps[1], kernel * kernel * channels])
    return graph.op("Reshape", [x, flat], f"{name}_tokens")


def _gemm(graph: Graph, program: Program, name: str, x: str) -> str:
    w, b = (program.weights[f"{name}.{part}"] for part in ("weight", "bias"))
    return graph.op("Gemm", [x, graph.const(f"{name}/w", w), graph.const(f"{name}/b", b)], f"{name}/y")


def _norm(graph: Graph, program: Program, name: str, x: str) -> str:
    inputs = [x] + [graph.const(f"{name}.{part}", program.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
    return graph.op("LayerNormalization", inputs, f"{name}/y", axis=-1, epsilon=program.spec.norm_eps)


def _attention(graph: Graph, program: Program, name: str, x: str, tokens: int) -> str:
    """Return one token-to-token stage, `[T, C]` to `[T, K]`: v + proj(attention), then + FFN."""
    qkv = _gemm(graph, program, f"{name}.qkv", _norm(graph, program, f"{name}.norm1", x))
    q, k, v = (f"{name}/{part}" for part in "qkv")
    graph.ops("Split", [qkv], [q, k, v], axis=1, num_outputs=3)
    if program.spec.stem.kind == "t2t_performer":
        y = _performer(graph, program, name, q, k, v)
    else:
        y = _softmax_attention(graph, program, name, q, k, v)
    y = graph.op("Add", [v, _gemm(graph, program, f"{name}.proj", y)], f"{name}/attended")
    hidden = _gemm(graph, program, f"{name}.fc1", _norm(graph, program, f"{name}.norm2", y))
    hidden = graph.op("Gelu", [hidden], f"{name}/act")
    return graph.op("Add", [y, _gemm(graph, program, f"{name}.fc2", hidden)], f"{name}/out")


def _softmax_attention(graph: Graph, program: Program, name: str, q: str, k: str, v: str) -> str:
    scale = np.array(program.spec.stem.token_dim**-0.5, dtype=np.float32)
    q = graph.op("Mul", [q, graph.const(f"{name}/scale", scale)], f"{name}/q_scaled")
    scores = graph.op("MatMul", [q, graph.op("Transpose", [k], f"{name}/k_t", perm=[1, 0])], f"{name}/scores")
    return graph.op("MatMul", [graph.op("Softmax", [scores], f"{name}/softmax", axis=-1), v], f"{name}/values")


def _performer(graph: Graph, program: Program, name: str, q: str, k: str, v: str) -> str:
    """Return the linear attention with positive random features: qp (kp^T v) / (qp . sum kp + 1e-8)."""
    qp, kp = _features(graph, program, name, "q", q), _features(graph, program, name, "k", k)
    axes = graph.const(f"{name}/axis_0", [0])
    total = graph.op("ReduceSum", [kp, axes], f"{name}/k_sum", keepdims=1)
    total = graph.op("Transpose", [total], f"{name}/k_sum_t", perm=[1, 0])
    divisor = graph.op("MatMul", [qp, total], f"{name}/divisor")
    tiny = graph.const(f"{name}/tiny", np.array(1e-8, dtype=np.float32))
    divisor = graph.op("Add", [divisor, tiny], f"{name}/divisor_safe")
    kv = graph.op("MatMul", [graph.op("Transpose", [kp], f"{name}/kp_t", perm=[1, 0]), v], f"{name}/kv")
    return graph.op("Div", [graph.op("MatMul", [qp, kv], f"{name}/mixed"), divisor], f"{name}/values")


def _features(graph: Graph, program: Program, name: str, part: str, x: str) -> str:
    """Return exp(x w^T - |x|^2 / 2) / sqrt(m), `[T, m]`."""
    w = program.weights[f"{name}.w"]
    projected = graph.op("MatMul", [x, graph.const(f"{name}/w_t", w.T)], f"{name}/{part}_w")
    square = graph.op("Mul", [x, x], f"{name}/{part}_square")
    axes = graph.const(f"{name}/axis_1", [1])
    square = graph.op("ReduceSum", [square, axes], f"{name}/{part}_norm2", keepdims=1)
    half = graph.op(
        "Mul", [square, graph.const(f"{name}/half", np.array(0.5, dtype=np.float32))], f"{name}/{part}_half"
    )
    exponent = graph.op("Exp", [graph.op("Sub", [projected, half], f"{name}/{part}_shifted")], f"{name}/{part}_exp")
    root = graph.const(f"{name}/root", np.array(w.shape[0] ** -0.5, dtype=np.float32))
    return graph.op("Mul", [exponent, root], f"{name}/{part}_features")
