"""Write a lowered graph the way that OpenVINO's CPU plugin has fast kernels for; the function stays the same.

Measured on a CPU with AMX and bf16, of an int8 DeiT-Ti in 2026.4.1:

- zero points: its int8 product takes them apart at run time. Here they move into the bias, which is exact: with weights
  `W` and an input `(q - z) s`, the product is `q s W` less `z s sum(W)`. 14 % of the time.
- a norm before a quantized product has three axes. Of two, the plugin folds its weights into the quantization and then
  finds no fast kernel for that. 7 %.
- keys are transposed to heads first and then once more, which the plugin turns into a product with a transposed
  operand. In one step it copies them element by element. 4 %.
- queries, keys and values by a product each. 1 %.
- where tokens merge, the best of every row is looked for along columns instead, which takes whole vectors. 1.5 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgevit.backends.projections import Constants, Weights, graphs, node_attributes, separate

KEYS, HEADS, SWAPPED = [0, 2, 3, 1], [0, 2, 1, 3], [0, 1, 3, 2]


def rewrite(
    model: onnx.ModelProto, beside: Weights | None = None, *, arch: str = "x86_64"
) -> tuple[onnx.ModelProto, Weights]:
    """Return the same function in that form; `beside` are the initialisers that a model only names.

    On other architectures zero points stay: the plugin's kernels for ARM give wrong products without them.
    """
    rewritten, weights = separate(model, beside)
    constants = Constants(rewritten, weights)
    for graph in graphs(rewritten):
        found = _Graph(graph, constants)
        for node in graph.node:
            if arch == "x86_64" and node.op_type == "DequantizeLinear" and node.input[0] not in constants:
                _move_zero_point(node, found)
        for node in graph.node:
            if node.op_type == "LayerNormalization":
                _give_three_axes(node, found)
            elif node.op_type == "Transpose" and node_attributes(node).get("perm") == KEYS:
                _transpose_twice(node, found)
            elif node.op_type == "ArgMax":
                _search_columns(node, found)
        found.insert()
    return rewritten, constants.beside


class _Graph:
    """One graph: who makes and who reads a tensor, and the nodes to come before and after others, by their output."""

    def __init__(self, graph: onnx.GraphProto, constants: Constants) -> None:
        self.constants = constants
        self.makers = {output: node for node in graph.node for output in node.output}
        self.before: dict[str, onnx.NodeProto] = {}
        self.after: dict[str, onnx.NodeProto] = {}
        self._graph = graph
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._results = {output.name for output in graph.output}

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return all that read a tensor; none if it is a result of the graph too."""
        return [] if name in self._results else self._readers.get(name, [])

    def maps(self, name: str) -> bool:
        """Return whether `name` is what Gemms map, and nothing else; it then has two axes."""
        readers = self.readers(name)
        return bool(readers) and all(r.op_type == "Gemm" and r.input[0] == name for r in readers)

    def insert(self) -> None:
        """Put the nodes in their places."""
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            around = (self.before.get(node.output[0]), node, self.after.get(node.output[0]))
            nodes += [each for each in around if each is not None]
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(kept)


def _move_zero_point(dequantize: onnx.NodeProto, graph: _Graph) -> None:
    """Count `x` from 0 on instead of from its zero point, and move the difference into the biases of its products."""
    constants, x = graph.constants, str(dequantize.output[0])
    if len(dequantize.input) < 3 or not graph.maps(x) or any(name not in constants for name in dequantize.input[1:]):
        return
    scale, zero = (constants.array(name) for name in dequantize.input[1:])
    products = [(node, _constant(node, 1, graph), _constant(node, 2, graph)) for node in graph.readers(x)]
    if scale.ndim or not zero.any() or any(weight is None or bias is None for _, weight, bias in products):
        return
    for node, weight, bias in products:
        assert weight is not None and bias is not None
        sums = weight.sum(axis=1 if node_attributes(node).get("transB") else 0)
        moved = bias - float(zero) * float(scale) * sums
        name = constants.add(f"{node.name}/bias", moved.astype(np.float32), like=_origin(node.input[1], graph))
        del node.input[2:]
        node.input.append(name)
    none = constants.add(f"{dequantize.input[2]}/none", np.zeros_like(zero), like=dequantize.input[2])
    dequantize.input[2] = none


def _constant(product: onnx.NodeProto, index: int, graph: _Graph) -> np.ndarray | None:
    """Return an operand of a Gemm in float64 if it is constant, dequantized or not; zeros for a bias that is not there.

    A weight must be dequantized: only such products are int8.
    """
    if index >= len(product.input):
        return np.zeros(1)
    name, constants = str(product.input[index]), graph.constants
    maker = graph.makers.get(name)
    if maker is None and index == 2 and name in constants:
        return constants.array(name).astype(np.float64)
    if maker is None or maker.op_type != "DequantizeLinear" or any(i not in constants for i in maker.input):
        return None
    values, scale = (constants.array(i).astype(np.float64) for i in maker.input[:2])
    if any(constants.array(i).any() for i in maker.input[2:]):
        return None
    axis = int(node_attributes(maker).get("axis", 1))
    shape = [-1 if at == axis % values.ndim else 1 for at in range(values.ndim)]
    return values * (scale.reshape(shape) if scale.ndim else scale)


def _origin(name: str, graph: _Graph) -> str:
    """Return the scale of a dequantized weight: a constant that is held where the bias is to be."""
    return str(graph.makers[name].input[1])


def _give_three_axes(norm: onnx.NodeProto, graph: _Graph) -> None:
    """Let a norm, and the quantization after it, work on `[1, N, D]` instead of `[N, D]`."""
    y = str(norm.output[0])
    quantized = [node for node in graph.readers(y) if node.op_type == "QuantizeLinear"]
    dequantized = [reader for node in quantized for reader in graph.readers(node.output[0])]
    if not quantized or quantized[0].input[1] not in graph.constants:
        return
    if any(n.op_type != "DequantizeLinear" or not graph.maps(n.output[0]) for n in dequantized):
        return
    wide = f"{y}/3d"
    axis = graph.constants.add(f"{wide}_axis", np.array([0], dtype=np.int64), like=quantized[0].input[1])
    graph.before[wide] = _node("Unsqueeze", [norm.input[0], axis], f"{wide}_in")
    if len(quantized) < len(graph.readers(y)):
        graph.after[wide] = _node("Squeeze", [wide, axis], y)
    norm.input[0] = f"{wide}_in"
    norm.output[0] = norm.name = wide
    for node in quantized:
        node.input[0] = wide
    for node in dequantized:
        flat = str(node.output[0])
        graph.after[f"{flat}/3d"] = _node("Squeeze", [f"{flat}/3d", axis], flat)
        node.output[0] = node.name = f"{flat}/3d"


def _transpose_twice(transpose: onnx.NodeProto, graph: _Graph) -> None:
    y = str(transpose.output[0])
    readers = graph.readers(y)
    if len(readers) != 1 or readers[0].op_type != "MatMul" or readers[0].input[1] != y:
        return
    del transpose.attribute[:]
    transpose.attribute.append(helper.make_attribute("perm", HEADS))
    transpose.output[0] = transpose.name = f"{y}/rows"
    graph.after[f"{y}/rows"] = _node("Transpose", [f"{y}/rows"], y, perm=SWAPPED)


def _search_columns(search: onnx.NodeProto, graph: _Graph) -> None:
    """Let the product of two sets of rows be `[S, F]` instead of `[F, S]` where only the best of each F are read."""
    scores, constants = str(search.input[0]), graph.constants
    product, readers = graph.makers.get(scores), graph.readers(scores)
    if product is None or product.op_type != "Gemm" or len(product.input) != 2:
        return
    if node_attributes(product) != {"transB": 1} or node_attributes(search) != {"axis": 1, "keepdims": 0}:
        return
    others = [reader for reader in readers if reader is not search]
    if any(n.op_type != "ReduceMax" or node_attributes(n).get("keepdims", 1) for n in others) or any(
        n.input[1] not in constants or constants.array(n.input[1]).tolist() != [1] for n in others
    ):
        return
    product.input[0], product.input[1] = product.input[1], product.input[0]
    del search.attribute[:]
    search.attribute.extend(helper.make_attribute(name, 0) for name in ("axis", "keepdims"))
    for reduce in others:
        reduce.input[1] = constants.add(f"{scores}/down", np.array([0], dtype=np.int64), like=reduce.input[1])


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)
