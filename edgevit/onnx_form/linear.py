"""One Linear as the plan says: float Gemm, or static QDQ around a Gemm that runtimes turn into an int8 kernel.

Weights are `[in, out]`, int8 symmetric per output channel; the input is quantized per tensor; the output stays float.
Outlier input columns are zeroed in the int8 weights and added back by a small float Gemm over those columns.
"""

from __future__ import annotations

import numpy as np

from edgevit.onnx_form.graph import Graph
from edgevit.schema.quant_plan import LinearPlan, QuantPlan


def quantize_weight(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Map `[in, out]` float32 to (int8 `[in, out]`, scale float32 `[out]`), symmetric, `bits` wide."""
    limit = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(limit)
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def linear(
    graph: Graph,
    name: str,
    x: str,
    weight: np.ndarray,
    bias: np.ndarray | None,
    plan: QuantPlan | None,
    *,
    planned: str | None = None,
    quantized: bool = False,
) -> str:
    """Emit the Linear `name`, `[rows, in]` to `[rows, out]`, under the plan entry `planned` (default: its own name).

    `quantized` says that `x` is integer already, with the plan's scale and zero point (the image).
    """
    entry = plan.linear(planned or name) if plan else None
    if plan is None or entry is None or not entry.int8:
        inputs = [x, graph.const(f"{name}/w", weight)]
        if bias is not None:
            inputs.append(graph.const(f"{name}/b", bias))
        return graph.op("Gemm", inputs, f"{name}/y")
    if not entry.outliers:
        return _int8_gemm(graph, name, x, weight, bias, plan, entry, quantized)
    columns = np.array(entry.outliers, dtype=np.int64)
    regular = weight.copy()
    regular[columns] = 0
    y = _int8_gemm(graph, name, x, regular, bias, plan, entry, quantized)
    picked = graph.op("Gather", [x, graph.const(f"{name}/outliers", columns)], f"{name}/x_out", axis=1)
    return graph.op("Gemm", [picked, graph.const(f"{name}/w_out", weight[columns]), y], f"{name}/y_out")


def _int8_gemm(
    graph: Graph,
    name: str,
    x: str,
    weight: np.ndarray,
    bias: np.ndarray | None,
    plan: QuantPlan,
    entry: LinearPlan,
    quantized: bool,
) -> str:
    kind = np.uint8 if plan.activations == "uint8" or quantized else np.int8
    scale = graph.const(f"{name}/x_scale", np.array(entry.scale, dtype=np.float32))
    zero = graph.const(f"{name}/x_zero", np.array(entry.zero_point, dtype=kind))
    if not quantized:
        x = graph.op("QuantizeLinear", [x, scale, zero], f"{name}/x_q")
    x = graph.op("DequantizeLinear", [x, scale, zero], f"{name}/x_dq")
    values, scales = quantize_weight(weight, plan.weight_bits)
    # A runtime may fold a transposed int8 weight at compile time only when it is stored `[out, in]`.
    w = _dequantize(graph, f"{name}/w", np.ascontiguousarray(values.T), scales, axis=0)
    inputs = [x, w]
    if bias is not None:
        bias_scale = (scales * np.float32(entry.scale)).astype(np.float32)
        limit = 2**31 - 1
        steps = np.clip(np.rint(bias.astype(np.float64) / bias_scale), -limit, limit).astype(np.int32)
        inputs.append(_dequantize(graph, f"{name}/b", steps, bias_scale, axis=0))
    return graph.op("Gemm", inputs, f"{name}/y", transB=1)


def _dequantize(graph: Graph, name: str, values: np.ndarray, scales: np.ndarray, axis: int) -> str:
    inputs = [
        graph.const(f"{name}_q", values),
        graph.const(f"{name}_scale", scales),
        graph.const(f"{name}_zero", np.zeros(scales.shape, dtype=values.dtype)),
    ]
    return graph.op("DequantizeLinear", inputs, f"{name}_dq", axis=axis)
