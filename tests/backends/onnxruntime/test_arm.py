"""What ARM CPUs are given executes fewer instructions, and no step of 8 bits can tell."""

from __future__ import annotations

from dataclasses import replace
from math import erf, sqrt
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgevit.backends.onnxruntime.arm import ARCH, COARSE_STEPS, GELU_APART
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.projections import graphs, node_attributes
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from tests.backends.onnxruntime.test_memory_bound import CASES
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

COARSE = COARSE_STEPS * GELU_APART


def scaled(program: Program, scale: float, **changes: Any) -> QuantPlan:
    """Return a plan whose second products of FFNs round their inputs to steps of `scale`."""
    plan = tiny_plan(program)
    return replace(
        plan,
        linears=tuple(replace(p, scale=scale, **changes) if p.name.endswith("fc2") else p for p in plan.linears),
    )


def forms(model: onnx.ModelProto) -> set[str]:
    gelus = [node for graph in graphs(model) for node in graph.node if node.op_type == "Gelu"]
    return {node_attributes(node).get("approximate", b"none").decode() for node in gelus}


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if "activation" not in case])
@pytest.mark.parametrize("steps", ["coarse", "fine"])
def test_gelu_is_tanh_where_its_steps_are_coarse(case: str, steps: str) -> None:
    program = tiny_program(**CASES[case])
    model = assemble(program, scaled(program, COARSE * (1.01 if steps == "coarse" else 0.99)))
    fused, _ = fuse(model, arch=ARCH)
    onnx.checker.check_model(fused, full_check=True)
    assert forms(fused) == {"tanh" if steps == "coarse" else "none"}
    assert forms(fuse(model)[0]) == {"none"}, "other CPUs keep what is exact"


def test_float_models_stay_exact() -> None:
    assert forms(fuse(assemble(tiny_program()), arch=ARCH)[0]) == {"none"}


def test_outlier_columns_may_be_coarse_too() -> None:
    program = tiny_program()
    model = assemble(program, scaled(program, 2 * COARSE, outliers=(0, 3)))
    assert forms(fuse(model, arch=ARCH)[0]) == {"tanh"}


@pytest.mark.parametrize("reader", ["another node", "the caller"])
def test_who_reads_more_than_steps_gets_the_exact_one(reader: str) -> None:
    model = assemble(tiny_program(depth=1), scaled(tiny_program(depth=1), 2 * COARSE))
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Gelu")
    if reader == "another node":
        model.graph.node.append(helper.make_node("Relu", [name], ["read"], name="read"))
        name = "read"
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    assert forms(fuse(model, arch=ARCH)[0]) == {"none"}


def test_both_forms_are_as_near_as_the_rule_says() -> None:
    x = np.linspace(-8, 8, 20001)
    exact = np.array([0.5 * v * (1 + erf(v / sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert 0.99 * GELU_APART < np.abs(exact - tanh).max() <= GELU_APART


def test_logits_move_less_than_rounding_moves_them() -> None:
    program = tiny_program()
    model = assemble(program, scaled(program, 2 * COARSE))
    exact, coarse = reference(model), reference(fuse(model, arch=ARCH)[0])
    floats = reference(assemble(program))
    images = tiny_images(program.spec, 4)
    moved, rounded = (
        max(float(np.abs(exact.run(i[None])[0] - other.run(i[None])[0]).max()) for i in images)
        for other in (coarse, floats)
    )
    assert 0 < moved < rounded
