"""Our shape rules against onnx's own inference, on graphs that hold every operator of the lowering."""

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, shape_inference

from edgevit.backends.onnxruntime.shapes import Value, constant, declared, infer
from edgevit.errors import BoundError
from edgevit.onnx_form.assemble import assemble
from tests.backends.onnxruntime.test_memory_bound import CASES, quantized
from tests.tiny import tiny_program


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_rules_agree_with_onnx(case: str, int8: bool) -> None:
    program = tiny_program(**CASES[case])
    model = assemble(
        program, quantized(program.spec, outliers=True) if int8 else None, gating="both" if not int8 else "open"
    )
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    expected = {v.name: declared(v) for v in (*inferred.value_info, *inferred.output)}
    values = {v.name: declared(v) for v in model.graph.input} | {t.name: constant(t) for t in model.graph.initializer}
    for node in model.graph.node:
        values |= dict(zip(node.output, infer(node, values), strict=True))
    compared = {name: (values[name].shape, values[name].kind) for name in expected}
    assert compared == {name: (value.shape, value.kind) for name, value in expected.items()}
    assert len(compared) >= len(model.graph.node)


def rule(op: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> tuple[Value, ...]:
    names = [f"i{n}" for n in range(len(inputs))]
    node = helper.make_node(op, names, [f"o{n}" for n in range(outputs)], **attributes)
    return infer(node, dict(zip(names, inputs, strict=True)))


def floats(*shape: int) -> Value:
    return Value(shape, TensorProto.FLOAT)


def test_operators_that_only_the_runtime_knows() -> None:
    quantized_inputs = (
        Value((5, 8), TensorProto.UINT8),
        floats(),
        floats(),
        Value((8, 6), TensorProto.INT8),
        floats(6),
    )
    assert rule("QGemm", *quantized_inputs) == (floats(5, 6),)
    assert rule("FusedMatMul", floats(1, 3, 5, 8), floats(1, 3, 7, 8), transB=1) == (floats(1, 3, 5, 7),)
    turned = {"transBatchA": 1, "transBatchB": 1, "transB": 1}
    assert rule("FusedMatMul", floats(5, 3, 8), floats(7, 3, 8), **turned) == (floats(3, 5, 7),)
    assert rule("FusedMatMul", floats(3, 5, 7), floats(7, 3, 8), transBatchB=1) == (floats(3, 5, 8),)
    assert rule("FusedGemm", floats(5, 8), floats(6, 8), transB=1) == (floats(5, 6),)
    assert rule("QuickGelu", floats(5, 8), alpha=1.702) == (floats(5, 8),)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "said"),
    [
        ("Erf", (floats(2),), {}, "no shape rule for operator Erf"),
        ("Reshape", (floats(2), Value((1,), TensorProto.INT64)), {}, "computed while it runs"),
        ("LayerNormalization", (floats(2, 2), floats(2)), {"outputs": 3}, "3 outputs"),
    ],
)
def test_what_is_not_known_is_an_error(
    op: str, inputs: tuple[Value, ...], attributes: dict[str, int], said: str
) -> None:
    with pytest.raises(BoundError, match=said):
        rule(op, *inputs, **attributes)


def test_a_tensor_from_nowhere_is_an_error() -> None:
    with pytest.raises(BoundError, match="reads ghost"):
        infer(onnx.helper.make_node("Relu", ["ghost"], ["y"]), {})
