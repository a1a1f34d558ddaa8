"""Let attention read queries, keys and values where their products put them.

ONNX Runtime fuses a transposition of the first two of three axes, and with it that of the last two, into a product of
matrices: it then reads rows of a head at the stride of all heads. Of four axes, which is what the graph has, it fuses
none, and copies queries, keys and values once more. So the leading axis of 1 is dropped, which changes no number.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from edgevit.backends.onnxruntime import arm
from edgevit.backends.onnxruntime.halves import halve
from edgevit.backends.projections import Constants, Weights, graphs, node_attributes, separate

ROWS, KEYS = ([0, 2, 1, 3], [1, 0, 2]), ([0, 2, 3, 1], [1, 2, 0])


def fuse(model: onnx.ModelProto, beside: Weights | None = None, *, arch: str = "") -> tuple[onnx.ModelProto, Weights]:
    """Return the same function in the form that ONNX Runtime runs fastest on a CPU of `arch`.

    `beside` are the initialisers that a model only names.
    """
    fused, weights = separate(*halve(model, beside))
    constants = Constants(fused, weights)
    for graph in graphs(fused):
        found = _Graph(graph, fused, constants)
        for node in graph.node:
            if node.op_type == "Softmax":
                _flatten(node, found, constants)
    return arm.lighten(fused, constants.beside) if arch == arm.ARCH else (fused, constants.beside)


class _Graph:
    """Who makes and who reads a tensor of one graph."""

    def __init__(self, graph: onnx.GraphProto, model: onnx.ModelProto, constants: Constants) -> None:
        self.makers = {output: node for node in graph.node for output in node.output}
        self.outer = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.reads = Counter(name for node in graph.node for name in node.input)
        self.reads.update(output.name for output in graph.output)
        self._constants = constants

    def maker(self, name: str, op: str) -> onnx.NodeProto | None:
        """Return the node that makes `name` if it is an `op` and nobody else reads it."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op and self.reads[name] == 1 else None

    def reader(self, node: onnx.NodeProto, op: str) -> onnx.NodeProto | None:
        """Return the only reader of `node` if it is an `op`."""
        readers = self.readers.get(node.output[0], [])
        return (
            readers[0] if len(readers) == 1 and readers[0].op_type == op and self.reads[node.output[0]] == 1 else None
        )

    def shape(self, reshape: onnx.NodeProto | None) -> list[int]:
        """Return the constant shape of a Reshape; none where there is none."""
        if reshape is None or reshape.input[1] not in self._constants:
            return []
        return [int(n) for n in self._constants.array(reshape.input[1])]


def _flatten(softmax: onnx.NodeProto, graph: _Graph, constants: Constants) -> None:
    """Drop the leading axis of one attention, if it is what `onnx_form.attention` emits."""
    scores = graph.maker(softmax.input[0], "MatMul") or _weighed(softmax, graph)
    values = graph.reader(softmax, "MatMul")
    merged = graph.reader(values, "Transpose") if values is not None else None
    if scores is None or values is None or merged is None or node_attributes(merged).get("perm") != ROWS[0]:
        return
    if len(graph.shape(graph.reader(merged, "Reshape"))) != 2 or values.input[0] != softmax.output[0]:
        return
    parts = [(scores.input[0], ROWS), (scores.input[1], KEYS), (values.input[1], ROWS)]
    heads = [_heads(name, perm[0], graph) for name, perm in parts]
    if any(found is None for found in heads):
        return
    for found, (_, perm) in zip(heads, parts, strict=True):
        assert found is not None
        transpose, reshape = found
        shape = np.array(graph.shape(reshape)[1:], dtype=np.int64)
        reshape.input[1] = constants.add(f"{reshape.input[1]}/flat", shape, like=reshape.input[1])
        _permute(transpose, perm[1])
    _permute(merged, ROWS[1])


def _weighed(softmax: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """Return the scores' product where a row for all heads is added to it: log sizes of merged tokens."""
    added = graph.maker(softmax.input[0], "Add")
    if added is None:
        return None
    row = graph.outer.get(added.input[1]) or graph.makers.get(added.input[1])
    if row is None or row.op_type != "Reshape" or not 0 < len(graph.shape(row)) <= 2:
        return None
    return graph.maker(added.input[0], "MatMul")


def _heads(name: str, perm: list[int], graph: _Graph) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return the Transpose and the Reshape that make heads of rows, a norm between them or not."""
    transpose = graph.maker(name, "Transpose")
    if transpose is None or node_attributes(transpose).get("perm") != perm:
        return None
    norm = graph.maker(transpose.input[0], "LayerNormalization")
    if norm is not None and node_attributes(norm).get("axis") != -1:
        return None
    reshape = graph.maker((norm or transpose).input[0], "Reshape")
    shape = graph.shape(reshape)
    return (transpose, reshape) if reshape is not None and len(shape) == 4 and shape[0] == 1 else None


def _permute(transpose: onnx.NodeProto, perm: list[int]) -> None:
    del transpose.attribute[:]
    transpose.attribute.append(onnx.helper.make_attribute("perm", perm))
