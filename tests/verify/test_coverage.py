from __future__ import annotations

import onnx
import pytest

from edgevit.backends import onnx_backend, onnx_backends
from edgevit.errors import CoverageError
from edgevit.onnx_form.assemble import assemble
from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from edgevit.util.strict_json import to_data
from edgevit.verify.coverage import check_coverage
from tests.lowered import tiny_plan
from tests.tiny import tiny_program

PROGRAM = tiny_program(gated=True, skip=True)
PLAN = tiny_plan(PROGRAM)


def kernels(model: onnx.ModelProto, name: str) -> tuple[tuple[str, bool], ...]:
    return onnx_backend(name).linear_kernels(model)


def lower(plan: QuantPlan | None, name: str) -> onnx.ModelProto:
    # OpenVINO shows no branch bodies: there the plain twin stands for the model.
    return assemble(PROGRAM, plan, gating="if" if name == "onnxruntime" else "open")


@pytest.mark.parametrize("name", onnx_backends())
def test_a_quantized_model_runs_int8(name: str) -> None:
    result = check_coverage(PLAN, kernels(lower(PLAN, name), name))
    assert result.summary == "10 of 10 Gemm int8"
    counted = {linear["name"]: linear["int8_kernels"] for linear in to_data(result)["linears"]}
    assert counted["b00_mhsa.qkv"] == counted["b01_mhsa.qkv"] == 3  # queries, keys, values


@pytest.mark.parametrize("name", onnx_backends())
def test_a_linear_planned_float_is_no_fault(name: str) -> None:
    plan = tiny_plan(PROGRAM, floats=("b00_ffn.fc2", "head"))
    assert check_coverage(plan, kernels(lower(plan, name), name)).summary == "8 of 8 Gemm int8"


@pytest.mark.parametrize("name", onnx_backends())
def test_a_float_branch_body_is_caught(name: str) -> None:
    broken = tiny_plan(PROGRAM, floats=("b00_ffn.fc1", "b00_ffn.fc2"))
    message = r"8 of 10 Gemm int8; (?s:.*)b00_ffn.fc1: 0 int8 and 1 float kernels\n  b00_ffn.fc2: 0 int8"
    with pytest.raises(CoverageError, match=message):
        check_coverage(PLAN, kernels(lower(broken, name), name))


def test_a_recipe_that_the_runtime_does_not_know_is_caught() -> None:
    model = lower(PLAN, "onnxruntime")
    bodies = [a.g for n in model.graph.node if n.name == "b01_ffn/y" for a in n.attribute]
    gemm = next(n for body in bodies for n in body.node if n.name == "b01_ffn.fc1/y")
    # Gemm's alpha is 1 in every kernel but the float one.
    gemm.attribute.append(onnx.helper.make_attribute("alpha", 0.5))
    gemm.attribute.append(onnx.helper.make_attribute("beta", 0.5))
    with pytest.raises(CoverageError, match=r"9 of 10 .*\n  b01_ffn\.fc1: 0 int8 and 1 float"):
        check_coverage(PLAN, kernels(model, "onnxruntime"))


def test_branch_bodies_that_no_runtime_shows_do_not_count() -> None:
    with pytest.raises(CoverageError, match=r"(?s)2 of 10 .*b00_mhsa\.qkv: no kernel found"):
        check_coverage(PLAN, kernels(assemble(PROGRAM, PLAN), "openvino"))


def linear(*, outliers: tuple[int, ...] = ()) -> QuantPlan:
    return QuantPlan(linears=(LinearPlan(name="b00_ffn.fc2", int8=True, outliers=outliers),))


def test_the_float_product_of_outlier_columns_is_no_fault() -> None:
    found = [("b00_ffn.fc2/w_q", True), ("b00_ffn.fc2/w_out", False)]
    assert check_coverage(linear(outliers=(3,)), found).linears[0].float_kernels == 1


def test_half_an_int8_linear_is_a_fault() -> None:
    plan = QuantPlan(linears=(LinearPlan(name="b00_mhsa.qkv", int8=True),))
    with pytest.raises(CoverageError, match="1 int8 and 1 float"):
        check_coverage(plan, [("b00_mhsa.q/w_q", True), ("b00_mhsa.kv/w", False)])


def test_an_attention_that_was_planned_int8_must_be() -> None:
    plan = QuantPlan(linears=(), attentions=("b00_mhsa", "b01_mhsa"))
    found = [("b00_mhsa.attention/attention_3", True), ("b01_mhsa.attention/attention_3", True)]
    result = check_coverage(plan, found)
    assert (result.attentions, result.planned_attentions) == (2, 2)
    assert result.summary == "0 of 0 Gemm int8, 2 of 2 attentions"
    for faulty in (found[:1], [found[0], ("b01_mhsa.attention/attention_3", False)]):
        with pytest.raises(CoverageError, match="1 of 2 attentions; .*:\n  b01_mhsa.attention: no int8 kernel\n"):
            check_coverage(plan, faulty)
