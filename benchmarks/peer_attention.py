"""The fastest graph that ONNX Runtime's own tools quantize, built by hand of the runtime's fused operators.

No exporter makes it: `Attention` and `FastGelu` of com.microsoft, which `quantize_dynamic` turns into `QAttention` and
`DynamicQuantizeMatMul`. What somebody who knows the runtime well reaches without calibration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peer_builds import INPUT, OPSET, _quiet
from edgevit.program.program import Program

MICROSOFT = "com.microsoft"


def ort_attention(program: Program, path: Path) -> None:
    """Write a plain ViT of one class token as that graph, and quantize it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    built = path.with_name("attention.onnx")
    onnx.save(_Built(program).model(), built)
    with _quiet():
        quantize_dynamic(
            str(built),
            str(path),
            op_types_to_quantize=["MatMul", "Gemm", "Attention"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # of what `Attention` and `FastGelu` make
        )


class _Built:
    """The graph of one Program, node by node."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._nodes: list[onnx.NodeProto] = []
        self._held: dict[str, np.ndarray] = {}

    def model(self) -> onnx.ModelProto:
        spec = self._program.spec
        side = spec.stem.patch
        x = self._node("Conv", [INPUT, self._stem_weight(), self._weight("stem.bias")], "conv", strides=[side, side])
        x = self._node("Reshape", [x, self._const("rows", np.array([1, spec.dim, spec.patches]))], "rows_of")
        x = self._node("Transpose", [x], "tokens", perm=[0, 2, 1])
        x = self._node("Add", [x, self._weight("stem.pos")], "placed")
        prefix = self._const("prefix", self._program.weights["stem.prefix"][None])
        x = self._node("Concat", [prefix, x], "stream", axis=1)
        for branch in spec.branches:
            y = self._norm(f"{branch.name}.norm", x)
            y = self._mhsa(branch.name, y, branch.units) if branch.kind == "mhsa" else self._ffn(branch.name, y)
            x = self._node("Add", [x, y], f"{branch.name}/out")
        x = self._node("Gather", [self._norm("head.norm", x), self._const("first", np.array(0))], "class", axis=1)
        self._node("Gemm", [x, self._weight("head.weight"), self._weight("head.bias")], "logits")
        shapes = {INPUT: [1, 3, spec.image.height, spec.image.width], "logits": [1, spec.head.classes]}
        image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in shapes.items())
        held = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in self._held.items()]
        graph = helper.make_graph(self._nodes, spec.name, [image], [logits], initializer=held)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _stem_weight(self) -> str:
        """Return the patches' weights as a convolution's, `[D, 3, side, side]`."""
        spec, weight = self._program.spec, self._program.weights["stem.weight"]
        side = spec.stem.patch
        return self._const("stem.kernel", weight.reshape(side, side, 3, spec.dim).transpose(3, 2, 0, 1))

    def _mhsa(self, name: str, x: str, heads: int) -> str:
        inputs = [x, self._weight(f"{name}.qkv.weight"), self._weight(f"{name}.qkv.bias")]
        x = self._node("Attention", inputs, f"{name}/attention", domain=MICROSOFT, num_heads=heads)
        return self._linear(f"{name}.proj", x)

    def _ffn(self, name: str, x: str) -> str:
        x = self._node("MatMul", [x, self._weight(f"{name}.fc1.weight")], f"{name}.fc1/product")
        x = self._node("FastGelu", [x, self._weight(f"{name}.fc1.bias")], f"{name}/act", domain=MICROSOFT)
        return self._linear(f"{name}.fc2", x)

    def _linear(self, name: str, x: str) -> str:
        x = self._node("MatMul", [x, self._weight(f"{name}.weight")], f"{name}/product")
        return self._node("Add", [x, self._weight(f"{name}.bias")], f"{name}/y")

    def _norm(self, name: str, x: str) -> str:
        inputs = [x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self._node("LayerNormalization", inputs, f"{name}/y", axis=-1, epsilon=self._program.spec.norm_eps)

    def _weight(self, name: str) -> str:
        return self._const(name, self._program.weights[name])

    def _const(self, name: str, array: np.ndarray) -> str:
        self._held[name] = array
        return name

    def _node(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output
