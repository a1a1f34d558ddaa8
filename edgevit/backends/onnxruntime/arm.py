"""Let ARM CPUs execute fewer instructions for an int8 model, where nobody can tell the numbers apart.

Counted on a Cortex-A76 (reports/reference/arm-operators.md), the erf of GELU takes 10 instructions more an element than
tanh does. Where what comes of it is rounded to 8 bits at once, and a step of these is `COARSE_STEPS` times as wide as
the two forms are apart, tanh does as well; outlier columns, which stay float, are then as near as the rest. And
`QGemm`, which the runtime makes of an int8 Gemm, first writes an integer bias for every row and then adds sums to it;
its operator `MatMulIntegerToFloat` scales the sums and adds a float bias as it writes them.

On x86-64 neither saves time, so what is exact and standard stays there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from edgevit.backends.projections import Constants, Weights, graphs, node_attributes

ARCH = "aarch64"
GELU_APART = 4.74e-4  # at most, at |x| = 2.7
COARSE_STEPS = 16
DOMAIN = "com.microsoft"


def lighten(model: onnx.ModelProto, beside: Weights) -> tuple[onnx.ModelProto, Weights]:
    """Return the model with fewer instructions to execute on ARM; `beside` are initialisers that it only names."""
    lighter = type(model)()
    lighter.CopyFrom(model)
    constants = Constants(lighter, beside)
    for graph in graphs(lighter):
        for node in graph.node:
            if node.op_type == "Gelu" and _rounds_coarsely(node.output[0], graph, constants):
                _approximate(node)
        _scale_at_once(graph, constants, lighter)
    if any(node.domain == DOMAIN for graph in graphs(lighter) for node in graph.node):
        lighter.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return lighter, constants.beside


def _rounds_coarsely(name: str, graph: onnx.GraphProto, constants: Constants) -> bool:
    """Whether a tensor is read by a coarse quantizer, and beside it by picks of outlier columns only."""
    readers = [node for node in graph.node if name in node.input]
    steps = [constants.array(n.input[1]) for n in readers if n.op_type == "QuantizeLinear" and n.input[1] in constants]
    picks = [node for node in readers if node.op_type == "Gather"]
    if name in {output.name for output in graph.output} or len(steps) + len(picks) < len(readers):
        return False
    return _coarse(steps)


def _coarse(steps: Sequence[np.ndarray]) -> bool:
    return bool(steps) and min(float(step.min()) for step in steps) >= COARSE_STEPS * GELU_APART


def _approximate(gelu: onnx.NodeProto) -> None:
    if node_attributes(gelu).get("approximate", b"none") == b"none":
        del gelu.attribute[:]
        gelu.attribute.append(helper.make_attribute("approximate", "tanh"))


def _scale_at_once(graph: onnx.GraphProto, constants: Constants, model: onnx.ModelProto) -> None:
    """Replace the int8 Gemms of `onnx_form.linear`, and what dequantizes their operands, by the runtime's operator."""
    makers = {output: node for node in graph.node for output in node.output}
    nodes = [_product(node, makers, constants) or node for node in graph.node]
    reads = Counter(name for node in nodes for name in node.input) + Counter(output.name for output in graph.output)
    gone = [n for n in nodes if n.op_type == "DequantizeLinear" and not reads[n.output[0]]]
    if not gone:
        return
    kept = [type(n).FromString(n.SerializeToString()) for n in nodes if not any(n is other for other in gone)]
    del graph.node[:]
    graph.node.extend(kept)
    constants.drop([name for node in gone for name in node.input], model)


def _product(gemm: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constants: Constants) -> onnx.NodeProto | None:
    """Return the runtime's operator for an int8 Gemm; None for any other node."""
    if gemm.op_type != "Gemm" or node_attributes(gemm) != {"transB": 1}:
        return None
    operands = [makers.get(name) for name in gemm.input]
    if any(made is None or made.op_type != "DequantizeLinear" for made in operands):
        return None
    x, weight, *bias = (list(made.input) for made in operands if made is not None)
    if any(name not in constants for name in (*x[1:], *weight, *(name for each in bias for name in each))):
        return None
    values, zeros = constants.array(weight[0]), constants.array(weight[2])
    if values.dtype != np.int8 or zeros.any():
        return None
    columns = constants.add(f"{weight[0]}/columns", values.T, like=weight[0])
    # One zero for all columns: without any, the pass that keeps int8 exact on CPUs without VNNI overlooks the weight.
    zero = constants.add(f"{weight[2]}/one", np.zeros((), np.int8), like=weight[2])
    inputs = [x[0], columns, x[1], weight[1], x[2], zero]
    for steps, scale, _ in bias:
        floats = constants.array(steps).astype(np.float32) * constants.array(scale)
        inputs.append(constants.add(f"{steps}/float", floats, like=steps))
    return helper.make_node("MatMulIntegerToFloat", inputs, list(gemm.output), name=gemm.name, domain=DOMAIN)
