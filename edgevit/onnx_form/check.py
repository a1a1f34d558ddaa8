"""Look at a lowered model before any compiler does: compilers are slow, or crash, on what they do not expect."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx

from edgevit.errors import ProgramError
from edgevit.onnx_form.graph import OPSET
from edgevit.program.program import expected_shapes
from edgevit.program.spec import ProgramSpec
from edgevit.schema.quant_plan import linear_names

# What the parts emit; an operator outside it came from somewhere else.
# fmt: off
OPERATORS = frozenset({
    "Add", "ArgMax", "Cast", "Concat", "DequantizeLinear", "Div", "Exp", "Gather", "Gelu", "Gemm", "Greater",
    "Identity", "If", "LayerNormalization", "Log", "MatMul", "Mul", "OneHot", "Pad", "QuantizeLinear",
    "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split",
    "Squeeze", "Sub", "TopK", "Transpose", "Where",
})
# fmt: on
MAX_NODES = 20_000
MAX_BYTES = 2**31 - 1  # protobuf's limit of one message
MAX_DEPTH = 1  # a runtime's compile time can be exponential in the nesting depth of If


def check_size(spec: ProgramSpec, *, int8: bool) -> None:
    """Refuse, before anything slow begins, what no ONNX file can hold once it is lowered.

    Raises:
        ProgramError: the weights alone, with every Linear int8 where `int8` is set, are more than protobuf's limit.
    """
    linears = {f"{name}.weight" for name in linear_names(spec)} if int8 else set()
    size = sum(math.prod(s) * (1 if name in linears else 4) for name, s in expected_shapes(spec).items())
    if size > MAX_BYTES:
        what = "its Linears in int8" if int8 else "float weights"
        raise ProgramError(
            f"{spec.name} has {size} bytes with {what}, at most {MAX_BYTES} fit into one ONNX file; "
            + ("prune it, or take a smaller model" if int8 else "take a target with int8 = true, or a smaller model")
        )


def check_model(model: onnx.ModelProto) -> None:
    """Check size, nesting, operators, opset, inputs and outputs, and that the ONNX checker infers every shape.

    Raises:
        ProgramError: all faults found, one per line.
    """
    faults = [*_contract_faults(model), *_node_faults(model), *_data_faults(model)]
    if not faults:
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            faults = [f"the ONNX checker refuses it: {error}"]
    if faults:
        raise ProgramError(f"the lowered model {model.graph.name!r} has faults:\n  " + "\n  ".join(faults))


def _contract_faults(model: onnx.ModelProto) -> Iterator[str]:
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    if opsets != {"ai.onnx": OPSET}:
        yield f"opsets are {opsets}, allowed: ai.onnx {OPSET} alone"
    inputs = [value.name for value in model.graph.input]
    if inputs not in (["image"], ["image", "effort"]):
        yield f"inputs are {inputs}, expected image and, with gates or thresholds of merges, effort"
    outputs = [value.name for value in model.graph.output]
    if outputs[:2] != ["logits", "gates"]:
        yield f"outputs are {outputs}, expected logits and gates first"
    if model.functions:
        yield f"it holds {len(model.functions)} functions, expected none"


def _node_faults(model: onnx.ModelProto) -> Iterator[str]:
    count, depth = 0, 0
    unknown: set[str] = set()
    for node, level in nodes(model.graph):
        count, depth = count + 1, max(depth, level)
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            unknown.add(f"{node.domain or 'ai.onnx'}.{node.op_type}")
    if count > MAX_NODES:
        yield f"it has {count} nodes, at most {MAX_NODES} are allowed"
    if depth > MAX_DEPTH:
        yield f"If nodes are nested {depth} deep, at most {MAX_DEPTH} is allowed"
    if unknown:
        yield f"unknown operators: {', '.join(sorted(unknown))}"


def _data_faults(model: onnx.ModelProto) -> Iterator[str]:
    size = model.ByteSize()
    if size > MAX_BYTES:
        yield f"it is {size} bytes, at most {MAX_BYTES} fit into one ONNX file; shrink the model"
    graphs = [model.graph, *(a.g for node, _ in nodes(model.graph) for a in node.attribute if a.HasField("g"))]
    outside = [t.name for g in graphs for t in g.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        yield f"initialisers point to files outside the model: {', '.join(outside[:5])}"


def nodes(graph: onnx.GraphProto, level: int = 0) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Yield every node with its If depth (0 = main graph), bodies after the node that owns them."""
    for node in graph.node:
        yield node, level
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g, level + 1)
