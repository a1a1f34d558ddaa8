"""FFNs before tokens merge are computed by halves: the same numbers to the last bit, in less memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from edgevit.backends.onnxruntime import linear_kernels
from edgevit.backends.onnxruntime.halves import halve
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.onnxruntime.memory_bound import bound
from edgevit.backends.projections import graphs
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.verify.coverage import check_coverage
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

LATE: dict[str, dict[str, Any]] = {
    "fixed": {"tokens": "3:4"},
    "follows": {"tokens": "3:1-9@0.8"},
    "gated": {"tokens": "2:4,3:3", "gated": True, "skip": True},
    "relu": {"tokens": "3:4", "activation": "relu"},
}
OUTLIERS = ((), (1, 5), (62, 63), (0, 31, 32, 63))


def model_of(options: dict[str, Any], outliers: tuple[int, ...] = ()) -> tuple[Program, QuantPlan, onnx.ModelProto]:
    program = tiny_program(depth=4, image=(64, 64), hidden=64, **options)
    plan = tiny_plan(program)
    linears = (replace(p, outliers=outliers if p.name.endswith("fc2") else ()) for p in plan.linears)
    plan = replace(plan, linears=tuple(linears))
    return program, plan, assemble(program, plan)


def halved(model: onnx.ModelProto) -> list[str]:
    return [n.name.partition("/")[0] for g in graphs(model) for n in g.node if n.name.endswith("act/low")]


@pytest.mark.parametrize("outliers", OUTLIERS)
@pytest.mark.parametrize("case", LATE)
def test_the_same_numbers(case: str, outliers: tuple[int, ...]) -> None:
    program, plan, model = model_of(LATE[case], outliers)
    whole, _ = fuse(model, {})
    assert halved(whole) == [f"b0{block}_ffn" for block in range({"gated": 1, "follows": 4}.get(case, 2))]
    assert not any(node.op_type == "Split" and node.name.endswith("halves") for g in graphs(whole) for node in g.node)
    onnx.checker.check_model(whole, full_check=True)
    for image in tiny_images(program.spec, 3):
        for effort in (0.0, 1e9, -1e9):
            expected, got = (reference(m).run(image[None], effort) for m in (model, whole))
            np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
            np.testing.assert_array_equal(got[1], expected[1])
    result = check_coverage(plan, linear_kernels(model))
    assert result.int8 == result.planned == len(plan.linears)


@pytest.mark.parametrize("options", [{}, {"gated": True}, {"tokens": "1:8"}])
def test_without_a_late_merge_nothing_is_halved(options: dict[str, Any]) -> None:
    assert halved(fuse(model_of(options)[2])[0]) == []


def test_what_is_float_or_odd_stays_whole() -> None:
    program = tiny_program(depth=4, hidden=37, tokens="3:4")
    assert halved(fuse(assemble(program, tiny_plan(program)))[0]) == []
    program = tiny_program(depth=4, tokens="3:4")
    assert halved(fuse(assemble(program))[0]) == []


def test_outlier_columns_that_are_not_in_order_stay_whole() -> None:
    _, _, model = model_of(LATE["fixed"], (1, 5))
    for tensor in model.graph.initializer:
        if tensor.name == "b00_ffn.fc2/outliers":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([5, 1]), tensor.name))
    assert halved(fuse(model)[0]) == ["b01_ffn"]


def test_the_model_given_is_not_changed_and_weights_may_lie_beside_it() -> None:
    program, plan, model = model_of(LATE["fixed"], (1, 62))
    before = model.SerializeToString(deterministic=True)
    halve(model)
    assert model.SerializeToString(deterministic=True) == before
    named, beside = fuse(*detached(program, plan))
    image = tiny_images(program.spec, 1)
    np.testing.assert_allclose(reference(named, beside).run(image)[0], reference(model).run(image)[0], atol=1e-5)


def test_a_model_that_merges_late_needs_less_memory_than_one_that_does_not() -> None:
    """Where FFNs need most, which is where the tokens are few against the hidden units."""
    options: dict[str, Any] = {"depth": 4, "image": (64, 64), "dim": 64, "hidden": 256}
    peaks = []
    for tokens in ("", "2:16,3:12"):
        program = tiny_program(tokens=tokens, **options)
        peaks.append(bound(fuse(assemble(program, tiny_plan(program)))[0]).bound.activations_bytes)
    assert peaks[1] < 0.85 * peaks[0]
