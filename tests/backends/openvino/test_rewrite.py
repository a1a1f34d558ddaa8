"""What OpenVINO is given computes the same, and has the kernels that it was rewritten for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgevit.backends.openvino import compile, linear_kernels, load
from edgevit.backends.openvino.rewrite import rewrite
from edgevit.backends.projections import Constants, graphs
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.schema.quant_plan import QuantPlan
from edgevit.verify.coverage import check_coverage
from tests.backends.onnxruntime.test_memory_bound import ADAPTIVE, CASES, quantized
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

MODELS: dict[str, dict[str, Any]] = {
    **CASES,
    **{f"follows_{index}": {"depth": 4, "image": (64, 64), **options} for index, options in enumerate(ADAPTIVE)},
}


def as_written(model: onnx.ModelProto) -> Callable[[np.ndarray, float], np.ndarray]:
    """Return the logits, rounded values in float arithmetic: an int8 product in ONNX Runtime rounds its bias too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    takes_effort = any(value.name == "effort" for value in model.graph.input)

    def run(image: np.ndarray, effort: float) -> np.ndarray:
        inputs = {"image": image} | ({"effort": np.array(effort, dtype=np.float32)} if takes_effort else {})
        return np.asarray(session.run(["logits"], inputs)[0])

    return run


@pytest.mark.parametrize("plan", ["float", "int8", "outliers"])
@pytest.mark.parametrize("case", MODELS)
def test_the_same_function(case: str, plan: str) -> None:
    program = tiny_program(**MODELS[case])
    plans: dict[str, QuantPlan | None] = {
        "float": None,
        "int8": tiny_plan(program),
        "outliers": quantized(program.spec, outliers=True),
    }
    model = assemble(program, plans[plan])
    rewritten, _ = rewrite(model)
    onnx.checker.check_model(rewritten, full_check=True)
    expected, got = as_written(model), as_written(rewritten)
    # One rounding step that tips over decides which tokens are alike.
    allowed = 0.1 if plan != "float" and case.startswith("follows") else 2e-4
    for image in tiny_images(program.spec, 2):
        for effort in (0.0, 1e9, -1e9):
            np.testing.assert_allclose(got(image[None], effort), expected(image[None], effort), atol=allowed)


@pytest.mark.parametrize("case", ["plain", "gated", "qk_norm", "merged"])
def test_no_zero_points_and_norms_of_three_axes(case: str) -> None:
    program = tiny_program(**MODELS[case])
    model = assemble(program, tiny_plan(program))
    rewritten, beside = rewrite(model)
    constants = Constants(rewritten, beside)
    moved = 0
    for graph in graphs(rewritten):
        makers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                assert not constants.array(node.input[2]).any()
                moved += node.input[0] not in constants
            if node.op_type == "QuantizeLinear" and (norm := makers.get(node.input[0])) is not None:
                wide = norm.op_type != "LayerNormalization" or makers[norm.input[0]].op_type == "Unsqueeze"
                assert wide
            assert node.op_type != "Transpose" or list(node.attribute[0].ints) != [0, 2, 3, 1]
    assert moved >= 8


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_runs_no_quantization_of_its_own_and_all_products_int8(precision: str) -> None:
    program = tiny_program(dim=64, heads=2, image=(64, 64))
    plan = tiny_plan(program)
    result = check_coverage(plan, linear_kernels(assemble(program, plan, gating="open"), precision=precision))
    assert result.int8 == result.planned == len(plan.linears)


@pytest.mark.parametrize("case", ["gated", "merged_gated"])
def test_a_build_computes_it(case: str, tmp_path: Path) -> None:
    program = tiny_program(**MODELS[case])
    model = assemble(program)
    compile(model, tmp_path)
    runner, expected = load(tmp_path), reference(model)
    for image in tiny_images(program.spec, 2):
        for effort in (0.0, 1e9, -1e9):
            np.testing.assert_allclose(
                runner.run(image[None], effort)[0], expected.run(image[None], effort)[0], atol=1e-4
            )


def test_a_zero_point_that_cannot_move_stays() -> None:
    program = tiny_program(depth=1, pool="mean")
    model = assemble(program, tiny_plan(program))
    product = next(n for n in model.graph.node if n.op_type == "Gemm" and n.name == "b00_ffn.fc1/y")
    bias = next(n for n in model.graph.node if n.output[0] == product.input[2])
    bias.op_type = "Identity"  # not known before it runs, as far as anybody looks
    del bias.input[1:], bias.attribute[:]
    x = next(n for n in rewrite(model)[0].graph.node if n.name.startswith("b00_ffn.fc1/x_dq") and "zero" in n.input[2])
    assert not x.input[2].endswith("none")


def test_weights_beside_the_model() -> None:
    program = tiny_program(dim=64)
    plan = tiny_plan(program)
    image = tiny_images(program.spec, 1)
    whole, named = rewrite(assemble(program, plan)), rewrite(*detached(program, plan))
    assert named[1]
    np.testing.assert_allclose(reference(*named).run(image)[0], reference(*whole).run(image)[0], atol=1e-5)


def test_the_best_of_every_row_is_searched_along_columns() -> None:
    program = tiny_program(**MODELS["merged"])
    rewritten, _ = rewrite(assemble(program))
    searches = [node for node in rewritten.graph.node if node.op_type == "ArgMax"]
    assert len(searches) == len(program.spec.merges)
    makers = {output: node for node in rewritten.graph.node for output in node.output}
    for search in searches:
        assert {a.name: a.i for a in search.attribute} == {"axis": 0, "keepdims": 0}
        assert makers[search.input[0]].input[0].endswith("alike_second")
