"""Shapes and element sizes of every tensor of an ONNX Runtime graph, fused and contrib operators included.

ONNX Runtime's optimised graph carries no shapes, and onnx's own inference does not know the operators it fuses into.
Rules give the largest shapes there can be: where a size is computed while the model runs, its limits follow from the
nodes that compute it, and a size can only grow with those before it. An operator without a rule is an error, never a
tensor of size zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevit.errors import BoundError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """Shape and ONNX element type of a tensor; of a few integers that shapes depend on the most and the least, too.

    `data` is the most of each, `least` the least where they are computed (None: they are constant). `varies`: the shape
    is known only when the model runs.
    """

    shape: Shape
    kind: int
    data: np.ndarray | None = None
    least: np.ndarray | None = None
    varies: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(helper.tensor_dtype_to_np_dtype(self.kind).itemsize)


@dataclass(frozen=True)
class _Node:
    """One node with what a rule may need of it."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: int
    attributes: Mapping[str, Any]
    exact: bool

    def first(self, index: int = 0) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise BoundError(f"{self.op} lacks its input {index}")
        return value

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def ints(self, index: int, attribute: str, *, least: bool = False) -> list[int] | None:
        """Integers given by an input or, in older operator versions, an attribute; None if by neither.

        Of those that are computed while the model runs the most there can be, or the `least`.
        """
        if self.has(index):
            value = self.first(index)
            data = value.least if least and value.least is not None else value.data
            if data is None:
                raise BoundError(f"{self.op}: its {attribute} are computed while it runs, so its shape is unknown")
            return [int(v) for v in data.reshape(-1)]
        given = self.attributes.get(attribute)
        return None if given is None else [int(v) for v in given]


Rule = Callable[[_Node], tuple[Value, ...]]


def infer(node: onnx.NodeProto, values: Mapping[str, Value], *, exact: bool = False) -> tuple[Value, ...]:
    """Return shapes of the outputs of `node` (not `If`) from its inputs' in `values`.

    `exact` says that these are the shapes of one run, not the largest there can be.

    Raises:
        BoundError: no rule for the operator, or an input that is not known.
    """
    rule = RULES.get(node.op_type)
    if rule is None:
        raise BoundError(
            f"no shape rule for operator {node.op_type} (node {node.name}); known: {', '.join(sorted(RULES))}. "
            "Without its shape the memory bound would not be one: add a rule to edgevit/backends/onnxruntime/shapes.py"
        )
    missing = [name for name in node.input if name and name not in values]
    if missing:
        raise BoundError(f"{node.op_type} {node.name} reads {missing[0]}, whose shape is not known")
    inputs = tuple(values[name] if name else None for name in node.input)
    found = rule(
        _Node(
            op=node.op_type,
            inputs=inputs,
            outputs=len(node.output),
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            exact=exact,
        )
    )
    varies = any(value is not None and (value.varies or value.least is not None) for value in inputs)
    return tuple(replace(value, varies=True) for value in found) if varies else found


def constant(tensor: onnx.TensorProto) -> Value:
    """Return an initialiser; its data is kept when it is a short list of integers that may be a shape."""
    shape = tuple(tensor.dims)
    small = tensor.data_type == TensorProto.INT64 and math.prod(shape) <= 4096
    data = numpy_helper.to_array(tensor) if small and tensor.data_location != TensorProto.EXTERNAL else None
    return Value(shape, tensor.data_type, data)


def declared(value: onnx.ValueInfoProto) -> Value:
    """Return a graph input with a static shape."""
    dims = value.type.tensor_type.shape.dim
    if any(not d.HasField("dim_value") for d in dims):
        raise BoundError(f"input {value.name} has no fixed shape, so there is no bound; fix its dimensions")
    return Value(tuple(d.dim_value for d in dims), value.type.tensor_type.elem_type)


def _same(node: _Node) -> tuple[Value, ...]:
    if node.outputs > 1:
        raise BoundError(f"{node.op} with {node.outputs} outputs has no shape rule")
    return (Value(node.first().shape, node.first().kind),)


def _broadcast(node: _Node) -> tuple[Value, ...]:
    return (Value(_broadcast_shape([v.shape for v in node.inputs if v]), node.first().kind),)


def _broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    return tuple(int(n) for n in np.broadcast_shapes(*shapes))


def _compare(node: _Node) -> tuple[Value, ...]:
    return (Value(_broadcast(node)[0].shape, TensorProto.BOOL),)


def _where(node: _Node) -> tuple[Value, ...]:
    return (Value(_broadcast(node)[0].shape, node.first(1).kind),)


def _limits(value: Value) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the most of integers that shapes depend on."""
    assert value.data is not None
    return value.data if value.least is None else value.least, value.data


def _add(node: _Node) -> tuple[Value, ...]:
    (value,) = _broadcast(node)
    sides = [node.first(), node.first(1)]
    if any(side.data is None for side in sides):
        return (value,)
    least, most = (sum(_limits(side)[end] for side in sides) for end in (0, 1))
    return (replace(value, data=np.asarray(most), least=np.asarray(least)),)


def _scale(node: _Node) -> tuple[Value, ...]:
    """Multiply, or divide by a constant; the limits of integers that shapes depend on are among those of both."""
    (value,) = _broadcast(node)
    number, by = node.first(), node.first(1)
    if number.data is None or by.data is None or (node.op == "Div" and by.least is not None):
        return (value,)
    of = np.multiply if node.op == "Mul" else np.floor_divide
    ends = [np.broadcast_to(of(one, other), value.shape) for one in _limits(number) for other in _limits(by)]
    return (replace(value, data=np.maximum.reduce(ends), least=np.minimum.reduce(ends)),)


def _cast(node: _Node) -> tuple[Value, ...]:
    """Convert; of what is true or false 1 or 0 is made."""
    value = Value(node.first().shape, int(node.attributes["to"]))
    if node.first().kind != TensorProto.BOOL or value.kind != TensorProto.INT64:
        return (value,)
    return (replace(value, data=np.ones(value.shape, np.int64), least=np.zeros(value.shape, np.int64)),)


def _quantize(node: _Node) -> tuple[Value, ...]:
    kind = node.first(2).kind if node.has(2) else TensorProto.UINT8
    return (Value(node.first().shape, kind),)


def _dequantize(node: _Node) -> tuple[Value, ...]:
    return (Value(node.first().shape, node.first(1).kind),)


def _gemm(node: _Node) -> tuple[Value, ...]:
    return (Value(_gemm_shape(node, node.first(), node.first(1)), node.first().kind),)


def _qgemm(node: _Node) -> tuple[Value, ...]:
    kind = node.first(8).kind if node.has(8) else TensorProto.FLOAT
    return (Value(_gemm_shape(node, node.first(), node.first(3)), kind),)


def _integer_matmul(node: _Node) -> tuple[Value, ...]:
    (product,) = _matmul(node)
    return (replace(product, kind=TensorProto.FLOAT),)


def _gemm_shape(node: _Node, a: Value, b: Value) -> Shape:
    rows = a.shape[1] if node.attributes.get("transA") else a.shape[0]
    columns = b.shape[0] if node.attributes.get("transB") else b.shape[1]
    return rows, columns


def _matmul(node: _Node) -> tuple[Value, ...]:
    a, b = (_operand(node.first(index).shape, node, side) for index, side in enumerate("AB"))
    batch = _broadcast_shape([a[:-2], b[:-2]])
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (Value((*batch, *rows, *columns), node.first().kind),)


def _operand(shape: Shape, node: _Node, side: str) -> Shape:
    """Return the shape of a product's operand as multiplied: where batches are transposed, rows stood first."""
    if node.attributes.get(f"transBatch{side}") and len(shape) > 2:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if node.attributes.get(f"trans{side}") and len(shape) > 1 else shape


def _transpose(node: _Node) -> tuple[Value, ...]:
    shape = node.first().shape
    order = node.attributes.get("perm") or range(len(shape))[::-1]
    return (Value(tuple(shape[i] for i in order), node.first().kind),)


def _reshape(node: _Node) -> tuple[Value, ...]:
    source, wanted = node.first().shape, node.ints(1, "shape")
    if wanted is None:
        raise BoundError("Reshape without a shape")
    if not node.attributes.get("allowzero"):
        wanted = [source[i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(n for n in wanted if n != -1)
        wanted[wanted.index(-1)] = math.prod(source) // rest
    return (Value(tuple(wanted), node.first().kind),)


def _squeeze(node: _Node) -> tuple[Value, ...]:
    value, axes = node.first(), node.ints(1, "axes")
    gone = [i for i, n in enumerate(value.shape) if n == 1] if axes is None else [a % len(value.shape) for a in axes]
    left = tuple(n for i, n in enumerate(value.shape) if i not in gone)
    data, least = (None if limit is None else limit.reshape(left) for limit in (value.data, value.least))
    return (Value(left, value.kind, data, least),)


def _unsqueeze(node: _Node) -> tuple[Value, ...]:
    shape, axes = list(node.first().shape), node.ints(1, "axes") or []
    rank = len(shape) + len(axes)
    for axis in sorted(a % rank for a in axes):
        shape.insert(axis, 1)
    return (Value(tuple(shape), node.first().kind),)


def _concat(node: _Node) -> tuple[Value, ...]:
    shape = list(node.first().shape)
    axis = int(node.attributes["axis"]) % len(shape)
    shape[axis] = sum(v.shape[axis] for v in node.inputs if v)
    return (Value(tuple(shape), node.first().kind),)


def _split(node: _Node) -> tuple[Value, ...]:
    shape = node.first().shape
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    sizes = node.ints(1, "split")
    if sizes is None:
        chunk = -(-shape[axis] // node.outputs)
        sizes = [min(chunk, shape[axis] - i * chunk) for i in range(node.outputs)]
    return tuple(Value((*shape[:axis], n, *shape[axis + 1 :]), node.first().kind) for n in sizes)


def _gather(node: _Node) -> tuple[Value, ...]:
    """Pick rows; of a table of constants the limits are those of all rows that a computed place may name."""
    table, place = node.first(), node.first(1)
    axis = int(node.attributes.get("axis", 0)) % len(table.shape)
    value = Value((*table.shape[:axis], *place.shape, *table.shape[axis + 1 :]), table.kind)
    if axis or place.shape or place.least is None or table.data is None or table.least is not None:
        return (value,)
    first, last = (int(np.clip(limit, 0, len(table.data) - 1)) for limit in _limits(place))
    rows = table.data[first : last + 1]
    return (replace(value, data=rows.max(axis=0), least=rows.min(axis=0)),)


def _slice(node: _Node) -> tuple[Value, ...]:
    shape = list(node.first().shape)
    starts, ends = node.ints(1, "starts", least=True), node.ints(2, "ends")
    if starts is None or ends is None:
        raise BoundError("Slice without starts or ends")
    axes = node.ints(3, "axes") or list(range(len(starts)))
    steps = node.ints(4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        shape[axis] = len(range(shape[axis])[start:end:step])
    return (Value(tuple(shape), node.first().kind),)


def _topk(node: _Node) -> tuple[Value, ...]:
    shape, count = list(node.first().shape), node.ints(1, "k")
    if count is None:
        raise BoundError("TopK without k")
    shape[int(node.attributes.get("axis", -1)) % len(shape)] = count[0]
    return Value(tuple(shape), node.first().kind), Value(tuple(shape), TensorProto.INT64)


def _pad(node: _Node) -> tuple[Value, ...]:
    shape, pads = list(node.first().shape), node.ints(1, "pads") or []
    axes = node.ints(3, "axes") or list(range(len(shape)))
    for index, axis in enumerate(axes):
        shape[axis] += pads[index] + pads[index + len(axes)]
    return (Value(tuple(shape), node.first().kind),)


def _shape(node: _Node) -> tuple[Value, ...]:
    shape = node.first().shape
    start, end = (node.attributes.get(name, limit) for name, limit in (("start", 0), ("end", len(shape))))
    data = np.array(shape[start:end], dtype=np.int64)
    computed = data if node.exact else np.zeros_like(data)
    return (Value(data.shape, TensorProto.INT64, data, computed if node.first().varies else None),)


def _one_hot(node: _Node) -> tuple[Value, ...]:
    depth = node.ints(1, "depth") or [0]
    shape = list(node.first().shape)
    axis = int(node.attributes.get("axis", -1))
    shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, depth[0])
    return (Value(tuple(shape), node.first(2).kind),)


def _arg(node: _Node) -> tuple[Value, ...]:
    shape = node.first().shape
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    keep = bool(node.attributes.get("keepdims", 1))
    left = tuple(1 if i == axis else n for i, n in enumerate(shape) if keep or i != axis)
    return (Value(left, TensorProto.INT64),)


def _sum(node: _Node) -> tuple[Value, ...]:
    """Reduce; the sum of a list of integers that shapes depend on lies between the sums of their limits."""
    (value,) = _reduce(node)
    if node.first().data is None or len(node.first().shape) != 1:
        return (value,)
    least, most = (limit.sum().reshape(value.shape) for limit in _limits(node.first()))
    return (replace(value, data=most, least=least),)


def _reduce(node: _Node) -> tuple[Value, ...]:
    shape = node.first().shape
    axes = node.ints(1, "axes") or list(range(len(shape)))
    gone = {a % len(shape) for a in axes}
    keep = bool(node.attributes.get("keepdims", 1))
    left = [1 if i in gone else n for i, n in enumerate(shape) if keep or i not in gone]
    return (Value(tuple(left), node.first().kind),)


# Only operators whose kernels were seen to take no arena memory beside their outputs (tests/bound holds them to it).
# Only `Where`, of graphs that compute both sides of a gate and are never bounded, makes two copies of what it chooses
# from before its output, which then lies behind them.
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("Identity", "Softmax", "Gelu", "QuickGelu", "Relu", "Sigmoid", "Exp", "Log", "LayerNormalization"), _same
    ),
    "Sub": _broadcast,
    "Add": _add,
    "Mul": _scale,
    "Div": _scale,
    **dict.fromkeys(("Gemm", "FusedGemm"), _gemm),
    **dict.fromkeys(("MatMul", "FusedMatMul"), _matmul),
    **dict.fromkeys(("ReduceMean", "ReduceMax"), _reduce),
    "ReduceSum": _sum,
    **dict.fromkeys(("Greater", "Equal"), _compare),
    "Where": _where,
    "Cast": _cast,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QGemm": _qgemm,
    "MatMulIntegerToFloat": _integer_matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Gather": _gather,
    "Slice": _slice,
    "TopK": _topk,
    "ArgMax": _arg,
    "OneHot": _one_hot,
    "Shape": _shape,
    "Pad": _pad,
}
