"""Compute queries, keys and values by a product each, where one product was split into them: the same numbers.

Splitting `[tokens, 3 W]` copies all of it once. Three products take as long as one, as their weights are packed for
the kernel when the model is loaded. Only a Gemm whose whole result is split into equal columns is taken apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevit.onnx_form.graph import BESIDE, LARGE_BYTES

Weights = Mapping[str, np.ndarray]


class Constants:
    """The initialisers of a model by name, those that lie beside it included; what is added goes where its like is.

    A name that two bodies have for different ones, which nothing here emits, is none.
    """

    def __init__(self, model: onnx.ModelProto, beside: Weights) -> None:
        self.beside = dict(beside)
        held = [(tensor.name, graph, tensor) for graph in graphs(model) for tensor in graph.initializer]
        times = Counter(name for name, _, _ in held)
        self._home = {name: (graph, tensor) for name, graph, tensor in held if times[name] == 1}

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def array(self, name: str) -> np.ndarray:
        """Return the values of an initialiser."""
        return self.beside[name] if name in self.beside else numpy_helper.to_array(self._home[name][1])

    def add(self, name: str, array: np.ndarray, *, like: str) -> str:
        """Add an initialiser to the graph that holds `like`, beside the model if that lies there and it is large."""
        if name in self._home:
            return name
        home, array = self._home[like][0], np.ascontiguousarray(array)
        if like in self.beside and array.nbytes >= LARGE_BYTES:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor = TensorProto(name=name, dims=array.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value=BESIDE)
            self.beside[name] = array
        else:
            tensor = numpy_helper.from_array(array, name)
        home.initializer.append(tensor)
        self._home[name] = (home, home.initializer[-1])
        return name

    def drop(self, names: Iterable[str], model: onnx.ModelProto) -> None:
        """Remove those of the initialisers that no node reads any more."""
        read = {name for graph in graphs(model) for node in graph.node for name in node.input}
        for name in names:
            if name in self._home and name not in read:
                home, tensor = self._home.pop(name)
                home.initializer.remove(tensor)
                self.beside.pop(name, None)


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return the bodies of all Ifs and then the main graph: whose nodes are set anew, the bodies with them."""
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*bodies, model.graph]


def separate(model: onnx.ModelProto, beside: Weights | None = None) -> tuple[onnx.ModelProto, Weights]:
    """Return the same function without Splits of products; `beside` are initialisers that a model only names."""
    separated = type(model)()
    separated.CopyFrom(model)
    constants = Constants(separated, beside or {})
    for graph in graphs(separated):
        _separate(graph, constants, separated)
    return separated, constants.beside


def _separate(graph: onnx.GraphProto, constants: Constants, model: onnx.ModelProto) -> None:
    makers = {output: node for node in graph.node for output in node.output}
    readers = [name for node in graph.node for name in node.input] + [output.name for output in graph.output]
    gone: list[onnx.NodeProto] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        chain = _chain(node, makers, readers, constants) if _splits_evenly(node) else []
        if chain:
            for index, output in enumerate(node.output):
                nodes += _part(chain, constants, index, len(node.output), output)
            gone += [node, *chain]
        else:
            nodes.append(node)
    if not gone:
        return
    left = [node for node in nodes if not any(node is other for other in gone)]
    del graph.node[:]
    graph.node.extend(left)
    constants.drop([name for node in gone for name in node.input], model)


def _splits_evenly(node: onnx.NodeProto) -> bool:
    return node.op_type == "Split" and len(node.input) == 1 and node_attributes(node).get("axis") == 1


def _chain(
    split: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], readers: list[str], constants: Constants
) -> list[onnx.NodeProto]:
    """Return the nodes that make what is split, from the constants on; none where they are not what `linear` emits."""
    chain: list[onnx.NodeProto] = []
    name = str(split.input[0])
    while (node := makers.get(name)) is not None:
        if node.op_type != "Gemm" or readers.count(name) != 1:
            return []
        own = [makers[i] for i in node.input[1:] if i in makers and makers[i].op_type == "DequantizeLinear"]
        rest = [i for i in node.input[1:] if not any(i in d.output for d in own) and i not in constants]
        if any(i not in constants for d in own for i in d.input):
            return []
        chain = [*own, node, *chain]
        if not rest:
            return chain
        # The outlier columns' Gemm adds to the int8 one's result.
        if rest != [node.input[2]]:
            return []
        name = rest[0]
    return []


def _part(
    chain: list[onnx.NodeProto], constants: Constants, index: int, parts: int, output: str
) -> list[onnx.NodeProto]:
    """Return the chain once more for columns `index` of `parts`, its last node making `output`."""
    label = output.rpartition("/")[2]
    made = {name: f"{name}/{label}" for node in chain for name in node.output}
    rows = {name for node in chain if node_attributes(node).get("transB") for name in node.input[1:2]}
    nodes = []
    for node in chain:
        copy = type(node)()
        copy.CopyFrom(node)
        # The last axis is what is split; the first of a weight that the Gemm transposes. What a Gemm maps stays whole.
        transposed = bool({*node.output, *node.input} & rows)
        for at, name in enumerate(node.input):
            if name in made:
                copy.input[at] = made[name]
            elif name in constants and (node.op_type != "Gemm" or at) and (array := constants.array(name)).ndim:
                cut = np.split(array, parts, axis=0 if transposed and array.ndim > 1 else -1)[index]
                copy.input[at] = constants.add(f"{name}/{label}", cut, like=name)
        copy.output[0] = copy.name = made[node.output[0]]
        nodes.append(copy)
    nodes[-1].output[0] = output
    return nodes


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
