"""Graphs that mean harm, in bundles whose every hash fits: who attacks can hash."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import rehash

DOMAIN = "graphs.test"
MANY = 1 << 33  # float32 elements: 32 GiB
ENDLESS = (1 << 63) - 1
NODES = 100_000


def graph(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> bytes:
    """A model with the inputs and outputs of a tiny bundle's; `nodes` make the float `evil`, which logits depend on."""
    known = [
        constant("effort", np.float32(0)),
        constant("zeros", np.zeros((1, 10), np.float32)),
        constant("gates0", np.zeros(4, np.uint8)),
        constant("none", np.array([], np.int64)),
        constant("all", np.array([-1], np.int64)),
        constant("true", np.array(True)),
        constant("endless", np.int64(ENDLESS)),
        constant("many", np.array([MANY], np.int64)),
        constant("one", np.ones(1, np.float32)),
    ]
    ends = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        *nodes,
        helper.make_node("Add", ["zeros", "evil"], ["logits"]),
        helper.make_node("Identity", ["gates0"], ["gates"]),
    ]
    made = helper.make_graph(
        ends,
        "hostile",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 32, 32, 3]),
            helper.make_tensor_value_info("effort", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10]),
            helper.make_tensor_value_info("gates", TensorProto.UINT8, [4]),
        ],
        [*known, *initializers],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return bytes(helper.make_model(made, opset_imports=opsets, functions=functions, ir_version=8).SerializeToString())


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def mean_of(name: str) -> onnx.NodeProto:
    return helper.make_node("ReduceMax", [name], ["evil"], keepdims=0)


def filled() -> bytes:
    """32 GiB of one value, of a shape that only a run knows."""
    return graph([helper.make_node("ConstantOfShape", ["shape"], ["huge"]), mean_of("huge")], [shape()])


def shape() -> onnx.TensorProto:
    return constant("shape", np.array([MANY], np.int64))


def expanded() -> bytes:
    return graph([helper.make_node("Expand", ["mean", "many"], ["huge"]), mean_of("huge")])


def tiled() -> bytes:
    flat = helper.make_node("Reshape", ["mean", "all"], ["flat"])
    return graph([flat, helper.make_node("Tile", ["flat", "many"], ["huge"]), mean_of("huge")])


def endless() -> bytes:
    """A Loop of 2^63 - 1 rounds that holds nothing."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("Sin", ["x"], ["y"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    return graph([helper.make_node("Loop", ["endless", "true", "mean"], ["evil"], body=body)])


def growing() -> bytes:
    """A Loop whose tensor doubles every round, so that no shape tells."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("Concat", ["x", "x"], ["y"], axis=0),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]),
        ],
    )
    flat = helper.make_node("Reshape", ["mean", "all"], ["flat"])
    return graph([flat, helper.make_node("Loop", ["endless", "true", "flat"], ["huge"], body=body), mean_of("huge")])


def if_bomb(depth: int = 12) -> bytes:
    """Ifs in both branches of Ifs: 2^depth bodies."""
    numbers = itertools.count()

    def branch(left: int) -> onnx.GraphProto:
        out = f"y{next(numbers)}"
        node = helper.make_node("Neg", ["mean"], [out]) if not left else choice(left, out)
        return helper.make_graph([node], out, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, [])])

    def choice(left: int, out: str) -> onnx.NodeProto:
        return helper.make_node("If", ["open"], [out], then_branch=branch(left - 1), else_branch=branch(left - 1))

    opened = helper.make_node("Greater", ["mean", "effort"], ["open"])
    return graph([opened, choice(depth, "evil")])


def nested_ifs(levels: int = 400) -> bytes:
    """Ifs in Ifs, so many levels that no library writes them: put together byte by byte."""

    def field(number: int, content: bytes | str) -> bytes:
        raw = content.encode() if isinstance(content, str) else content
        return varint(number << 3 | 2) + varint(len(raw)) + raw

    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    def body(node: bytes, out: str) -> bytes:
        told = helper.make_tensor_value_info(out, TensorProto.FLOAT, []).SerializeToString()
        return field(1, node) + field(2, out) + field(12, told)

    leaf = body(helper.make_node("Neg", ["mean"], ["leaf"]).SerializeToString(), "leaf")
    inner, out = leaf, "leaf"
    for level in range(levels):
        out = f"y{level}" if level < levels - 1 else "evil"
        node = field(1, "open") + field(2, out) + field(4, "If")
        for name, content in (("then_branch", inner), ("else_branch", leaf)):
            node += field(5, field(1, name) + field(6, content) + varint(20 << 3) + varint(5))
        inner = body(node, out)
    opened = helper.make_node("Greater", ["mean", "effort"], ["open"])
    marker = helper.make_node("Identity", ["mean"], ["evil"])
    plain = onnx.load_from_string(graph([opened, marker]))
    nodes = [field(1, node) if n.output[0] == "evil" else field(1, n.SerializeToString()) for n in plain.graph.node]
    del plain.graph.node[:]
    whole = b"".join(nodes) + plain.graph.SerializeToString()
    plain.ClearField("graph")
    return bytes(plain.SerializeToString() + field(7, whole))


def function_bomb(depth: int = 40) -> bytes:
    """Functions that call the one before twice: a kilobyte that inlines to 2^depth nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    functions = []
    for level in range(depth):
        called = {"op_type": f"F{level - 1}", "domain": DOMAIN} if level else {"op_type": "Neg"}
        nodes = [helper.make_node(inputs=[a], outputs=[b], **called) for a, b in (("x", "m"), ("m", "y"))]
        functions.append(helper.make_function(DOMAIN, f"F{level}", ["x"], ["y"], nodes, opsets))
    return graph([helper.make_node(f"F{depth - 1}", ["mean"], ["evil"], domain=DOMAIN)], functions=functions)


def chain(nodes: int = NODES) -> bytes:
    names = ["mean", *(f"n{i}" for i in range(nodes - 1)), "evil"]
    return graph([helper.make_node("Sin", [a], [b]) for a, b in itertools.pairwise(names)])


def unknown_operator() -> bytes:
    return graph([helper.make_node("Evil", ["mean"], ["evil"], domain=DOMAIN)])


def no_logits() -> bytes:
    """Outputs of other names than a bundle's."""
    model = onnx.load_from_string(graph([helper.make_node("Neg", ["mean"], ["evil"])]))
    model.graph.output[0].name = model.graph.node[-2].output[0] = "something"
    return bytes(model.SerializeToString())


def no_image() -> bytes:
    model = onnx.load_from_string(graph([helper.make_node("Neg", ["mean"], ["evil"])]))
    model.graph.input[0].name = model.graph.node[0].input[0] = "something"
    return bytes(model.SerializeToString())


def absurd_dimensions(*dims: int) -> bytes:
    tensor = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"\0" * 4)
    return graph([mean_of("huge")], [tensor])


def external(location: str, offset: str = "0", length: str = "64", elements: int = 16) -> bytes:
    """An initializer whose values lie elsewhere."""
    tensor = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[elements])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return graph([mean_of("huge")], [tensor])


GRAPHS: dict[str, Callable[[], bytes]] = {
    "fills 32 GiB": filled,
    "expands to 32 GiB": expanded,
    "tiles to 32 GiB": tiled,
    "doubles for ever": growing,
    "functions that call themselves up": function_bomb,
    "400 Ifs in each other": nested_ifs,
    "unknown operator": unknown_operator,
    "no logits": no_logits,
    "no image": no_image,
    "2^80 elements": lambda: absurd_dimensions(1 << 40, 1 << 40),
    "2^64 elements": lambda: absurd_dimensions(1 << 32, 1 << 32),
    "32 GiB of which 4 bytes are there": lambda: absurd_dimensions(MANY),
    "a dimension below zero": lambda: absurd_dimensions(-16),
    "data outside": lambda: external("../manifest.json"),
    "data at an absolute path": lambda: external("/etc/passwd"),
    "data in a device": lambda: external("/dev/zero", length=str(4 * MANY), elements=MANY),
    "data beyond the end": lambda: external("model.onnx.data", offset=str(1 << 40)),
    "data of a wrong length": lambda: external("model.onnx.data", length=str(1 << 40), elements=1 << 38),
    "data at a place below zero": lambda: external("model.onnx.data", offset="-64"),
    "data at no place": lambda: external("model.onnx.data", offset="x"),
    "data at a place of 400 digits": lambda: external("model.onnx.data", offset="9" * 400),
    "not a model": lambda: b"\x08" * 1000,
    "an empty file": lambda: b"",
}


def put(folder: Path, content: bytes, name: str = "model/model.onnx") -> Path:
    """Replace a file of a bundle, and every hash with it."""
    (folder / name).write_bytes(content)
    rehash(folder)
    return folder
