"""What ARM CPUs are given executes fewer instructions, and no step of 8 bits can tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgevit.backends.onnxruntime import compile, linear_kernels, load, localise, options, session, written_bytes
from edgevit.backends.onnxruntime.arm import ARCH, COARSE_STEPS, GELU_APART
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.projections import graphs, node_attributes
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.verify.coverage import check_coverage
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


def signed(plan: QuantPlan) -> QuantPlan:
    """Return the plan with int8 activations; the image stays as it is."""
    linears = tuple(p if p.name == "stem" else replace(p, zero_point=p.zero_point - 128) for p in plan.linears)
    return replace(plan, linears=linears, activations="int8")


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


def operators(path: Path) -> Counter[str]:
    model = onnx.load(path, load_external_data=False)
    return Counter(node.op_type for graph in graphs(model) for node in graph.node)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_products_scale_at_once_and_compute_the_same(case: str, activations: Any) -> None:
    program = tiny_program(**CASES[case])
    plan = signed(scaled(program, 0.001, outliers=(1, 5))) if activations == "int8" else scaled(program, 0.001)
    model = assemble(program, plan)
    fused, _ = fuse(model, arch=ARCH)
    onnx.checker.check_model(fused, full_check=True)
    assert not any(node.op_type == "DequantizeLinear" for graph in graphs(fused) for node in graph.node)
    result = check_coverage(plan, linear_kernels(model, arch=ARCH))
    assert result.int8 == result.planned == len(plan.linears)
    exact, light = reference(model), reference(fused)
    for image in tiny_images(program.spec, 2):
        for effort in (0.0, 1e9, -1e9):
            expected, got = (each.run(image[None], effort) for each in (exact, light))
            np.testing.assert_allclose(got[0], expected[0], atol=1e-4)
            np.testing.assert_array_equal(got[1], expected[1])


def test_a_build_is_in_that_form_and_no_larger(tmp_path: Path) -> None:
    program = tiny_program(gated=True, dim=96, heads=3)
    plan = tiny_plan(program)
    model = assemble(program, plan)
    for arch in ("x86_64", ARCH):
        (tmp_path / arch).mkdir()
        compile(model, tmp_path / arch, formats=("onnx", "ort"), arch=arch)
    made = operators(tmp_path / ARCH / "model.onnx")
    # Queries, keys and values are a product each.
    attentions = sum(branch.kind == "mhsa" for branch in program.spec.branches)
    assert made["MatMulIntegerToFloat"] == len(plan.linears) + 2 * attentions
    assert made["DequantizeLinear"] == 0 and "com.microsoft" not in str(
        onnx.load(tmp_path / "x86_64" / "model.onnx", load_external_data=False).opset_import
    )
    sizes = [sum(f.stat().st_size for f in (tmp_path / arch).glob("model.onnx*")) for arch in ("x86_64", ARCH)]
    assert sizes[1] <= sizes[0]
    predicted = written_bytes(*fuse(*detached(program, plan), arch=ARCH))
    assert abs(predicted - sizes[1]) <= 0.01 * sizes[1]
    image = tiny_images(program.spec, 1)
    expected = reference(fuse(model, arch=ARCH)[0]).run(image, np.inf)[0]
    for file in ("model.onnx", "model.ort"):
        np.testing.assert_allclose(load(tmp_path / ARCH, file=file).run(image, np.inf)[0], expected, atol=1e-5)


def test_weights_do_not_saturate_on_cpus_without_vnni(tmp_path: Path) -> None:
    """The runtime's pass that keeps 8 bits exact there finds every weight."""
    program = tiny_program(gated=True)
    plan = replace(tiny_plan(program), weight_bits=8)
    model = localise(fuse(assemble(program, plan), arch=ARCH)[0])
    configured = options()
    configured.add_session_config_entry("session.x64quantprecision", "1")
    configured.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session(model.SerializeToString(), configured)
    made = onnx.load(tmp_path / "optimised.onnx")
    kinds: Counter[int] = Counter()
    for graph in graphs(made):
        held = {t.name: t.data_type for scope in (made.graph, graph) for t in scope.initializer}
        kinds.update(held[n.input[1]] for n in graph.node if n.op_type == "MatMulIntegerToFloat")
    assert kinds[onnx.TensorProto.UINT8] >= len(plan.linears) and not kinds[onnx.TensorProto.INT8]


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
