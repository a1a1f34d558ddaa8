from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from edgevit.errors import ProgramError
from edgevit.onnx_form.assemble import assemble
from edgevit.onnx_form.check import MAX_BYTES, check_model, check_size
from tests.lowered import tiny_plan
from tests.tiny import tiny_program, tiny_spec

PROGRAM = tiny_program(gated=True, skip=True)


@pytest.mark.parametrize("gating", ["if", "open", "both"])
def test_what_assemble_makes_passes(gating: str) -> None:
    check_model(assemble(PROGRAM, tiny_plan(PROGRAM), gating=gating))  # type: ignore[arg-type]
    check_model(assemble(tiny_program(prefix=0, activation="quick_gelu", qk_norm=True)))


def nest(model: onnx.ModelProto) -> None:
    inner, outer = [n for n in model.graph.node if n.op_type == "If"][:2]
    outer.attribute[0].g.node.append(inner)


def point_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def add_custom(model: onnx.ModelProto) -> None:
    body = next(n for n in model.graph.node if n.op_type == "If").attribute[0].g
    body.node[0].domain = "com.microsoft"


def cut_wire(model: onnx.ModelProto) -> None:
    model.graph.node[5].input[0] = "nobody"


def wrong_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 11]))


def grow(model: onnx.ModelProto) -> None:
    model.graph.node.extend([model.graph.node[0]] * 20_000)


BREAKS: list[tuple[Callable[[onnx.ModelProto], object], str]] = [
    (nest, "nested 2 deep, at most 1"),
    (point_outside, "point to files outside the model"),
    (add_custom, r"unknown operators: com\.microsoft\."),
    (cut_wire, "the ONNX checker refuses it"),
    (wrong_shape, "the ONNX checker refuses it"),
    (grow, "nodes, at most 20000"),
    (lambda m: setattr(m.opset_import[0], "version", 17), "opsets are {'ai.onnx': 17}, allowed: ai.onnx 21"),
    (lambda m: setattr(m.graph.input[0], "name", "pixels"), r"inputs are \['pixels', 'effort'\], expected image"),
    (lambda m: m.graph.output.pop(), r"outputs are \['logits'\], expected logits and gates"),
]


@pytest.mark.parametrize(("damage", "message"), BREAKS)
def test_what_is_damaged_is_refused(damage: Callable[[onnx.ModelProto], object], message: str) -> None:
    model = assemble(PROGRAM)
    damage(model)
    with pytest.raises(ProgramError, match=message):
        check_model(model)


def test_all_faults_are_told_at_once() -> None:
    model = assemble(PROGRAM)
    nest(model)
    add_custom(model)
    with pytest.raises(ProgramError, match=r"(?s)nested 2 deep.*unknown operators"):
        check_model(model)


def test_what_no_file_can_hold_is_refused_from_its_shapes_alone() -> None:
    """A model of 0.6 thousand million parameters has 2.4 GB in float and fits in int8; four times as many never do."""
    huge = tiny_spec(dim=1280, heads=16, depth=32, hidden=5120)
    check_size(huge, int8=True)
    with pytest.raises(ProgramError, match=rf"has 25\d{{8}} bytes with float weights, at most {MAX_BYTES} fit .* int8"):
        check_size(huge, int8=False)
    with pytest.raises(ProgramError, match="bytes with its Linears in int8, .* prune it"):
        check_size(tiny_spec(dim=2560, heads=16, depth=32, hidden=10240), int8=True)
