"""What ONNX Runtime is given computes the same, and the runtime fuses every transposition of heads into a product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgevit.backends.onnxruntime import compile, linear_kernels, load, written_bytes
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.onnxruntime.memory_bound import optimised
from edgevit.backends.projections import graphs
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.verify.coverage import check_coverage
from tests.backends.onnxruntime.test_memory_bound import ADAPTIVE, CASES
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program


def transposes(graph: onnx.GraphProto) -> list[str]:
    found = [node.output[0] for node in graph.node if node.op_type == "Transpose"]
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found + [name for body in bodies for name in transposes(body)]


MODELS: dict[str, dict[str, Any]] = {
    **CASES,
    **{f"follows_{index}": {"depth": 4, "image": (64, 64), **options} for index, options in enumerate(ADAPTIVE)},
}


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("case", MODELS)
def test_the_same_function_without_copies_of_heads(case: str, int8: bool) -> None:
    program = tiny_program(**MODELS[case])
    model = assemble(program, tiny_plan(program) if int8 else None)
    fused, _ = fuse(model)
    onnx.checker.check_model(fused, full_check=True)
    for image in tiny_images(program.spec, 2):
        for effort in (0.0, 1e9, -1e9):
            expected, got = (reference(m).run(image[None], effort) for m in (model, fused))
            np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
            np.testing.assert_array_equal(got[1], expected[1])
    kept = transposes(optimised(fused))
    assert all("stem" in name or "merged" in name or "context" in name for name in kept)
    assert len(kept) == 1 + sum(b.kind == "mhsa" and not b.removed for b in program.spec.branches)


def test_a_build_is_in_that_form(tmp_path: Path) -> None:
    program = tiny_program(gated=True)
    compile(assemble(program), tmp_path, formats=("onnx", "ort"))
    written = onnx.load(tmp_path / "model.onnx")
    assert not any(node.op_type == "Split" for graph in graphs(written) for node in graph.node)
    image = tiny_images(program.spec, 1)
    expected = reference(assemble(program)).run(image, np.inf)[0]
    for file in ("model.onnx", "model.ort"):
        np.testing.assert_allclose(load(tmp_path, file=file).run(image, np.inf)[0], expected, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "merged_gated"])
def test_all_products_are_still_counted_int8(case: str) -> None:
    program = tiny_program(**MODELS[case])
    plan = tiny_plan(program)
    result = check_coverage(plan, linear_kernels(assemble(program, plan)))
    assert result.int8 == result.planned == len(plan.linears)


def test_predicted_bytes_are_the_written_ones(tmp_path: Path) -> None:
    program = tiny_program(gated=True, dim=96, heads=3)
    plan = tiny_plan(program)
    compile(assemble(program, plan), tmp_path, formats=("onnx",))
    predicted = written_bytes(*fuse(*detached(program, plan)))
    written = sum((tmp_path / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert abs(predicted - written) <= 0.01 * written


@pytest.mark.parametrize("how", ["scores are read", "a matrix per head is added", "values come first"])
def test_an_attention_of_another_kind_stays(how: str) -> None:
    model = assemble(tiny_program(depth=1, pool="mean"))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    if how == "scores are read":
        model.graph.output.append(helper.make_tensor_value_info(softmax.input[0], onnx.TensorProto.FLOAT, None))
    elif how == "a matrix per head is added":
        scores = softmax.input[0]
        bias = helper.make_tensor("bias", onnx.TensorProto.FLOAT, [1, 2, 1, 17], np.zeros(34, dtype=np.float32))
        model.graph.initializer.append(bias)
        place = next(i for i, node in enumerate(model.graph.node) if node is softmax or node.name == softmax.name)
        model.graph.node.insert(place, helper.make_node("Add", [scores, "bias"], ["added"], name="added"))
        softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
        softmax.input[0] = "added"
    else:
        values = next(node for node in model.graph.node if softmax.output[0] in node.input)
        values.input[0], values.input[1] = values.input[1], values.input[0]
    perms = [list(a.ints) for node in fuse(model)[0].graph.node for a in node.attribute if a.name == "perm"]
    assert [0, 2, 3, 1] in perms
    assert [1, 2, 0] not in perms
