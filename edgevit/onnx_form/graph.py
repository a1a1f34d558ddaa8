"""A small builder of ONNX graphs that knows where initialisers belong.

Initialisers of 1 KB and more live in the main graph, smaller ones (scales, zero points, biases) in the branch that
uses them: weights inside an If body can be held twice by a runtime, scales outside it keep int8 kernels from forming.
They stay arrays until the model is made, and may stay so beside it: a message holds no more than 2 GiB, and a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
LARGE_BYTES = 1024
BESIDE = "beside"  # where an initialiser lies that is not in the model: in memory, not in a file


class Graph:
    """Nodes and initialisers of one graph; `body()` opens the graph of an If branch inside it."""

    def __init__(self, name: str, parent: Graph | None = None) -> None:
        self.name = name
        self.parent = parent
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, np.ndarray] = {}
        self.root: Graph = parent.root if parent else self

    def body(self, name: str) -> Graph:
        return Graph(name, self)

    def const(self, name: str, value: np.ndarray | Sequence[int]) -> str:
        """Add an initialiser (lists become int64) where its size puts it, and return its name."""
        array = np.asarray(value, order="C") if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64)
        home = self.root if array.nbytes >= LARGE_BYTES else self
        if name not in home.initialisers:
            home.initialisers[name] = array
        return name

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, named like its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def ops(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Append a node with several outputs."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))

    def proto(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """Return the body of an If branch, its initialisers in it."""
        held = [numpy_helper.from_array(array, name) for name, array in self.initialisers.items()]
        return helper.make_graph(self.nodes, self.name, list(inputs), list(outputs), initializer=held)


def tensor(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(
    graph: Graph,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    producer_version: str,
    *,
    detached: bool = False,
) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]]:
    """Wrap a graph: standard opset only, no local paths, no time stamps, so equal inputs give equal bytes.

    With `detached` the large initialisers are only named in the model, and returned as they are: nothing is copied.
    """
    wrapped = helper.make_model(
        helper.make_graph(graph.nodes, graph.name, list(inputs), list(outputs)),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgevit",
        producer_version=producer_version,
    )
    beside: dict[str, np.ndarray] = {}
    for name, array in graph.initialisers.items():
        held = wrapped.graph.initializer.add(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        if detached and array.nbytes >= LARGE_BYTES:
            held.data_location = TensorProto.EXTERNAL
            held.external_data.add(key="location", value=BESIDE)
            beside[name] = array
        else:
            held.raw_data = array.tobytes()
    return wrapped, beside
