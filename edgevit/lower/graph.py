"""A small builder of ONNX graphs that knows where initialisers belong.

Initialisers of 1 KB and more live in the main graph, smaller ones (scales, zero points, biases) in the branch that
uses them: weights inside an If body are held twice by ONNX Runtime, scales outside it keep int8 kernels from forming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
LARGE_BYTES = 1024


class Graph:
    """Nodes and initialisers of one graph; `body()` opens the graph of an If branch inside it."""

    def __init__(self, name: str, parent: Graph | None = None) -> None:
        self.name = name
        self.parent = parent
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.root: Graph = parent.root if parent else self

    def body(self, name: str) -> Graph:
        return Graph(name, self)

    def const(self, name: str, value: np.ndarray | Sequence[int]) -> str:
        """Add an initialiser (lists become int64) where its size puts it, and return its name."""
        array = np.asarray(value, order="C") if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64)
        home = self.root if array.nbytes >= LARGE_BYTES else self
        if name not in home.initialisers:
            home.initialisers[name] = numpy_helper.from_array(array, name)
        return name

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, named like its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def ops(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Append a node with several outputs."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))

    def proto(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        return helper.make_graph(
            self.nodes, self.name, list(inputs), list(outputs), initializer=list(self.initialisers.values())
        )


def tensor(name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(graph: onnx.GraphProto, producer_version: str) -> onnx.ModelProto:
    """Wrap a graph: standard opset only, no local paths, no time stamps, so equal inputs give equal bytes."""
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgevit",
        producer_version=producer_version,
    )
