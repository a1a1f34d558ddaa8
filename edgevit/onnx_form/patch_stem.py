"""The patch embedding: one Linear on all patches of the image, uint8 in, normalisation folded into it."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.linear import linear
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.schema.quant_plan import QuantPlan


def embed(graph: Graph, program: Program, image: str, plan: QuantPlan | None) -> str:
    """Map uint8 `[1, height, width, 3]` to `[patches, D]` with positions; normalisation is folded in exactly."""
    spec, weights = program.spec, program.weights
    constant = weights["stem.pos"] + weights["stem.bias"]
    x = _patches(graph, spec, image)
    weight, offset = fold_normalisation(spec, weights["stem.weight"])
    constant = constant + offset
    entry = plan.linear("stem") if plan else None
    quantized = entry is not None and entry.int8
    if entry is not None and quantized:
        # The kernel sees pixel - zero_point: a zero point near the mean pixel keeps weight rounding from adding up.
        constant = constant + entry.zero_point * weight.sum(axis=0)
    if not quantized:
        x = graph.op("Cast", [x], "stem/float", to=TensorProto.FLOAT)
    x = linear(graph, "stem", x, weight, None, plan, quantized=quantized)
    # The bias is added with the position embedding: one addition instead of two.
    return graph.op("Add", [x, graph.const("stem.pos", constant)], "stem/pos")


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
