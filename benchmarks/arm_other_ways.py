"""Ways to do one work of a ViT-Ti's block with ONNX Runtime's operators, as models of their own to be counted.

N = 197 tokens, D = 192 wide, 3 heads of E = 64, 768 hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevit.backends.onnxruntime.arm import DOMAIN

ROWS, DIM, HEADS, WIDTH, HIDDEN = 197, 192, 3, 64, 768
Fed = tuple[onnx.ModelProto, Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One way: what it does, by which operators, and the model with its inputs."""

    work: str
    operators: str
    fed: Fed


@dataclass
class _Made:
    """A model that is being made: nodes, constants and inputs."""

    fed: dict[str, np.ndarray]
    opset: int = 21
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    held: dict[str, np.ndarray] = field(default_factory=dict)

    def op(self, op: str, inputs: list[str], output: str = "y", *, own: bool = False, **attributes: Any) -> str:
        domain = DOMAIN if own else ""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def ops(self, op: str, inputs: list[str], outputs: list[str]) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0]))

    def const(self, name: str, value: Any, kind: Any = np.float32) -> str:
        self.held[name] = np.ascontiguousarray(value, dtype=kind).reshape(np.shape(value))
        return name

    def finish(self, shape: list[int]) -> Fed:
        kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in self.fed.items()}
        inputs = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in self.fed.items()]
        output = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, shape)
        output.type.tensor_type.elem_type = TensorProto.UINT8 if self.nodes[-1].op_type in BYTES else TensorProto.FLOAT
        constants = [numpy_helper.from_array(array, name) for name, array in self.held.items()]
        graph = helper.make_graph(self.nodes, "way", inputs, [output], initializer=constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10), self.fed


BYTES = ("QuantizeLinear", "QLinearSoftmax", "QLinearSigmoid")


def ways() -> list[Counted]:
    """Return them, those that are used first."""
    return [*_activations(), *_softmaxes(), *_products(), *_scores(), *_values(), *_attentions(), *_norms()]


def _draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _steps(*shape: int, kind: Any = np.int8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(kind)


def _activations() -> list[Counted]:
    found = []
    for op, told, own, attributes in (
        ("Gelu", "Gelu, by erf", False, {"approximate": "none"}),
        ("Gelu", "Gelu, by tanh", False, {"approximate": "tanh"}),
        ("QuickGelu", "QuickGelu, another function", True, {"alpha": 1.702}),
    ):
        made = _Made({"x": _draw(ROWS, HIDDEN)})
        made.op(op, ["x"], own=own, **attributes)
        found.append(Counted(work="GELU", operators=told, fed=made.finish([ROWS, HIDDEN])))
    return found


def _softmaxes() -> list[Counted]:
    plain = _Made({"x": _draw(HEADS, ROWS, ROWS)})
    plain.op("Softmax", ["x"], axis=-1)
    table = _Made({"x": _steps(HEADS, ROWS, ROWS, kind=np.uint8)})
    grids = [
        table.const("a", 0.03),
        table.const("b", 128, np.uint8),
        table.const("c", 1 / 256),
        table.const("d", 0, np.uint8),
    ]
    table.op("QLinearSoftmax", ["x", *grids], own=True, axis=-1, opset=21)
    shape = [HEADS, ROWS, ROWS]
    return [
        Counted(work="softmax", operators="Softmax", fed=plain.finish(shape)),
        Counted(work="softmax", operators="QLinearSoftmax, bytes to bytes by a table", fed=table.finish(shape)),
    ]


def _products() -> list[Counted]:
    """The first product of the FFN, its input float: what it takes to round that is counted too."""
    scales = np.abs(_draw(HIDDEN)) + 0.1
    found = []
    for op in ("MatMulIntegerToFloat", "QGemm"):
        made = _Made({"x": _draw(ROWS, DIM)})
        grid = [made.const("s", 0.02), made.const("z", 128, np.uint8)]
        x = made.op("QuantizeLinear", ["x", *grid], "q")
        w, ws, wz = (
            made.const("w", _steps(DIM, HIDDEN), np.int8),
            made.const("ws", scales),
            made.const("wz", 0, np.int8),
        )
        if op == "QGemm":
            wz = made.const("wzs", np.zeros(HIDDEN), np.int8)
            inputs = [x, *grid, w, ws, wz, made.const("b", _steps(HIDDEN, kind=np.int32), np.int32)]
        else:
            inputs = [x, w, grid[0], ws, grid[1], wz, made.const("b", _draw(HIDDEN))]
        made.op(op, inputs, own=True)
        found.append(Counted(work="fc1", operators=f"QuantizeLinear, {op}", fed=made.finish([ROWS, HIDDEN])))
    made = _Made({"x": _draw(ROWS, DIM)})
    inputs = ["x", made.const("w", _steps(DIM, HIDDEN), np.int8), made.const("ws", scales)]
    inputs += [made.const("wz", np.zeros(HIDDEN), np.int8), made.const("b", _draw(HIDDEN))]
    made.op("DynamicQuantizeMatMul", inputs, own=True)
    found.append(
        Counted(work="fc1", operators="DynamicQuantizeMatMul, ranges at run time", fed=made.finish([ROWS, HIDDEN]))
    )
    made = _Made({"x": _draw(ROWS, DIM)})
    w = made.const("w", _steps(HIDDEN, DIM // 64, 64, kind=np.uint8), np.uint8)
    inputs = ["x", w, made.const("ws", np.abs(_draw(HIDDEN * DIM // 64))), "", "", made.const("b", _draw(HIDDEN))]
    made.op("MatMulNBits", inputs, own=True, K=DIM, N=HIDDEN, bits=8, block_size=64, accuracy_level=4)
    told = "MatMulNBits, 8 bits, blocks of 64, accuracy level 4"
    found.append(Counted(work="fc1", operators=told, fed=made.finish([ROWS, HIDDEN])))
    return found


def _heads(made: _Made, name: str, x: str, perm: list[int]) -> str:
    """Reshape rows to heads and transpose them."""
    shape = made.const("heads", [ROWS, HEADS, WIDTH], np.int64)
    return made.op("Transpose", [made.op("Reshape", [x, shape], f"{name}_split")], f"{name}_heads", perm=perm)


def _bytes(made: _Made, name: str) -> tuple[str, str, str]:
    """Round a tensor to bytes by its range at run time; return bytes, scale, zero."""
    told = [f"{name}_q", f"{name}_s", f"{name}_z"]
    made.ops("DynamicQuantizeLinear", [name], told)
    return told[0], told[1], told[2]


def _scores() -> list[Counted]:
    """Queries and keys float, a row per token, to scores."""
    fed = {"q": _draw(ROWS, DIM), "k": _draw(ROWS, DIM)}
    shape = [HEADS, ROWS, ROWS]
    plain = _Made(fed)
    shapes = [plain.const("heads", [ROWS, HEADS, WIDTH], np.int64)]
    q, k = (plain.op("Reshape", [name, *shapes], f"{name}_split") for name in fed)
    plain.op("FusedMatMul", [q, k], own=True, transBatchA=1, transBatchB=1, transB=1)
    rounded = _Made(fed)
    (q, qs, qz), (k, ks, kz) = (_bytes(rounded, name) for name in fed)
    q, k = _heads(rounded, "q", q, [1, 0, 2]), _heads(rounded, "k", k, [1, 2, 0])
    rounded.op("MatMulIntegerToFloat", [q, k, qs, ks, qz, kz], own=True)
    told = "DynamicQuantizeLinear and Transpose, two each, MatMulIntegerToFloat"
    return [
        Counted(work="attention's scores", operators="FusedMatMul, float", fed=plain.finish(shape)),
        Counted(work="attention's scores", operators=told, fed=rounded.finish(shape)),
    ]


def _values() -> list[Counted]:
    """Softmax's result and values float, a row per token, to what each head attends to."""
    fed = {"p": np.abs(_draw(HEADS, ROWS, ROWS)), "v": _draw(ROWS, DIM)}
    shape = [HEADS, ROWS, WIDTH]
    plain = _Made(fed)
    v = plain.op("Reshape", ["v", plain.const("heads", [ROWS, HEADS, WIDTH], np.int64)], "v_split")
    plain.op("FusedMatMul", ["p", v], own=True, transBatchB=1)
    rounded = _Made(fed)
    grid = [rounded.const("ps", 1 / 255), rounded.const("pz", 0, np.uint8)]
    p = rounded.op("QuantizeLinear", ["p", *grid], "p_q")
    v, vs, vz = _bytes(rounded, "v")
    v = _heads(rounded, "v", v, [1, 0, 2])
    rounded.op("MatMulIntegerToFloat", [p, v, grid[0], vs, grid[1], vz], own=True)
    told = "QuantizeLinear, DynamicQuantizeLinear, Transpose, MatMulIntegerToFloat"
    return [
        Counted(work="attention's values", operators="FusedMatMul, float", fed=plain.finish(shape)),
        Counted(work="attention's values", operators=told, fed=rounded.finish(shape)),
    ]


def _attentions() -> list[Counted]:
    """All of attention between its Linears, by the operators that are one."""
    fed = {name: _draw(1, ROWS, DIM) for name in "qkv"}
    one = _Made(fed)
    one.op("MultiHeadAttention", [*fed], own=True, num_heads=HEADS)
    standard = _Made(fed, opset=23)
    standard.op("Attention", [*fed], q_num_heads=HEADS, kv_num_heads=HEADS)
    shape = [1, ROWS, DIM]
    return [
        Counted(work="scores, softmax, values", operators="MultiHeadAttention", fed=one.finish(shape)),
        Counted(work="scores, softmax, values", operators="Attention of opset 23", fed=standard.finish(shape)),
    ]


def _norms() -> list[Counted]:
    fed = {"x": _draw(ROWS, DIM), "s": _draw(ROWS, DIM)}
    two = _Made(fed)
    x = two.op("Add", ["x", "s"], "sum")
    two.op("LayerNormalization", [x, two.const("w", _draw(DIM)), two.const("b", _draw(DIM))], axis=-1, epsilon=1e-6)
    one = _Made(fed)
    one.op("SkipLayerNormalization", ["x", "s", one.const("w", _draw(DIM)), one.const("b", _draw(DIM))], own=True)
    return [
        Counted(work="addition and LayerNorm", operators="Add, LayerNormalization", fed=two.finish([ROWS, DIM])),
        Counted(work="addition and LayerNorm", operators="SkipLayerNormalization", fed=one.finish([ROWS, DIM])),
    ]
