"""The feed-forward network of a branch: two Linears around an activation function."""

from __future__ import annotations

import numpy as np

from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.linear import linear
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.schema.quant_plan import QuantPlan


def ffn(graph: Graph, program: Program, spec: BranchSpec, x: str, plan: QuantPlan | None) -> str:
    """Map normed rows `[rows, D]` to `[rows, D]`."""
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
