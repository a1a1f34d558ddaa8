"""Let ARM CPUs execute fewer instructions for an int8 model, where nobody can tell the numbers apart.

Counted on a Cortex-A76, reports/reference/arm-operators.md: the erf of GELU takes 13 instructions more an element than
tanh does. Where what comes of it is rounded to 8 bits at once, and a step of these is `COARSE_STEPS` times as wide as
the two forms are apart, tanh does as well; outlier columns, which stay float, are then as near as the rest. On x86-64
both forms take the same time, so exact ones stay there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from edgevit.backends.projections import Constants, Weights, graphs, node_attributes

ARCH = "aarch64"
GELU_APART = 4.74e-4  # at most, at |x| = 2.3
COARSE_STEPS = 16


def lighten(model: onnx.ModelProto, beside: Weights) -> tuple[onnx.ModelProto, Weights]:
    """Return the model with fewer instructions to execute on ARM; `beside` are initialisers that it only names."""
    lighter = type(model)()
    lighter.CopyFrom(model)
    constants = Constants(lighter, beside)
    for graph in graphs(lighter):
        for node in graph.node:
            if node.op_type == "Gelu" and _rounds_coarsely(node.output[0], graph, constants):
                _approximate(node)
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
