"""Let blocks with many tokens need less memory: their int8 FFNs compute their hidden units half by half.

What an int8 model needs most memory for is the activation function of an FFN, whose input and output are both float:
where tokens merge later, the first blocks alone would set the memory of the whole model. So a half of the hidden units
is activated and rounded to bytes before the other half begins: in the blocks before tokens merge, and in all where
their number follows the image, which may keep all of them. The numbers are the same. Halves in all twelve blocks of a
DeiT-Ti take 0.4 % of its time; a model that merges nothing has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import onnx
from onnx import helper

from edgevit.backends.projections import Constants, Weights, node_attributes

ACTIVATIONS = ("Gelu", "Relu")
PARTS = ("low", "high")


def halve(model: onnx.ModelProto, beside: Weights | None = None) -> tuple[onnx.ModelProto, Weights]:
    """Return the same function with a Split behind the first product of these FFNs, for `projections` to take apart.

    `beside` are the initialisers that a model only names. A model that merges nothing is returned as it is.
    """
    merges = [index for index, node in enumerate(model.graph.node) if node.op_type == "ArgMax"]
    if not merges:
        return model, beside or {}
    halved = type(model)()
    halved.CopyFrom(model)
    constants = Constants(halved, beside or {})
    follows = any(output.name == "tokens" for output in model.graph.output)
    early = halved.graph.node[: None if follows else merges[0]]
    for body in (attribute.g for node in early for attribute in node.attribute if attribute.HasField("g")):
        _halve(body, body.node, constants)
    _halve(halved.graph, early, constants)
    return halved, constants.beside


def _halve(graph: onnx.GraphProto, early: Sequence[onnx.NodeProto], constants: Constants) -> None:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {output: node for node in graph.node for output in node.output}
    made: dict[str, list[onnx.NodeProto]] = {}  # what stands for a node, by its output
    for node in early:
        if node.op_type in ACTIVATIONS and (half := _half(makers.get(node.input[0]), makers, constants)):
            made |= _halves(node, half, readers, constants)
    nodes = chain.from_iterable(made.get(node.output[0], [node]) for node in graph.node)
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _half(product: onnx.NodeProto | None, makers: dict[str, onnx.NodeProto], constants: Constants) -> int:
    """Return half of the columns that a Gemm with a constant weight gives; 0 where there is none or they are odd."""
    if product is None or product.op_type != "Gemm":
        return 0
    name = str(product.input[1])
    if (rounded := makers.get(name)) is not None:
        name = str(rounded.input[0])
    if name not in constants:
        return 0
    columns = int(constants.array(name).shape[0 if node_attributes(product).get("transB") else 1])
    return 0 if columns % 2 else columns // 2


def _halves(
    activation: onnx.NodeProto, half: int, readers: dict[str, list[onnx.NodeProto]], constants: Constants
) -> dict[str, list[onnx.NodeProto]]:
    """Return what takes the place of an activation and its readers: its rounding, and a Gather of outlier columns."""
    x, y = str(activation.input[0]), str(activation.output[0])
    rounding = [node for node in readers[y] if node.op_type == "QuantizeLinear"]
    gathers = [node for node in readers[y] if node.op_type == "Gather" and node.input[1] in constants]
    if len(rounding) != 1 or len(rounding) + len(gathers) < len(readers[y]) or len(readers[x]) > 1:
        return {}
    picked = {node.output[0]: constants.array(node.input[1]) for node in gathers}
    if any((np.diff(columns) <= 0).any() for columns in picked.values()):
        return {}
    nodes = [helper.make_node("Split", [x], [f"{x}/{part}" for part in PARTS], f"{x}/halves", axis=1, num_outputs=2)]
    parts: dict[str, list[str]] = {}
    for index, part in enumerate(PARTS):
        nodes.append(_copy(activation, [f"{x}/{part}"], part))
        for node in (*gathers, *rounding):
            rest = list(node.input[1:])
            if node in gathers:
                columns = picked[node.output[0]] - index * half
                columns = columns[(columns >= 0) & (columns < half)]
                if not columns.size:
                    continue
                rest = [constants.add(f"{node.input[1]}/{part}", columns, like=node.input[1])]
            nodes.append(_copy(node, [f"{y}/{part}", *rest], part))
            parts.setdefault(node.output[0], []).append(nodes[-1].output[0])
    joined = [helper.make_node("Concat", names, [output], output, axis=1) for output, names in parts.items()]
    return {y: nodes, **{node.output[0]: [node] for node in joined}}


def _copy(node: onnx.NodeProto, inputs: list[str], part: str) -> onnx.NodeProto:
    copy = type(node)()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(inputs)
    copy.output[0] = copy.name = f"{node.output[0]}/{part}"
    return copy
