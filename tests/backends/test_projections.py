"""A product that is split is computed as so many products, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgevit.backends.projections import Constants, graphs, separate
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.onnx_form.graph import LARGE_BYTES
from tests.backends.onnxruntime.test_memory_bound import quantized
from tests.tiny import tiny_images, tiny_program


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for graph in graphs(model) for node in graph.node]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_splits_of_products_are_gone_and_their_weights_are_held_once(int8: bool) -> None:
    program = tiny_program(gated=True, dim=64)
    plan = quantized(program.spec, outliers=True) if int8 else None
    model = assemble(program, plan)
    separated, _ = separate(model)
    assert "Split" in operators(model)
    assert "Split" not in operators(separated)
    assert operators(model).count("Split") == 2  # the last block's keys and values are two of its three
    assert operators(separated).count("Gemm") == operators(model).count("Gemm") + 2 + 1

    def held(each: onnx.ModelProto) -> int:
        tensors = (t for graph in graphs(each) for t in graph.initializer)
        return sum(numpy_helper.to_array(t).nbytes for t in tensors if "qkv" in t.name or ".kv" in t.name)

    assert held(separated) == held(model)
    onnx.checker.check_model(separated, full_check=True)


def test_the_model_given_is_not_changed() -> None:
    model = assemble(tiny_program())
    before = model.SerializeToString(deterministic=True)
    separate(model)
    assert model.SerializeToString(deterministic=True) == before


def test_weights_beside_a_model_are_split_beside_it() -> None:
    program = tiny_program(gated=True, dim=64)
    image = tiny_images(program.spec, 1)
    model, beside = detached(program)
    separated, parts = separate(model, beside)
    assert not any("qkv.weight" in name or name.endswith("qkv/w") for name in parts)
    assert {f"b00_mhsa.qkv/w/{part}" for part in "qkv"} <= set(parts)
    assert all(array.nbytes >= LARGE_BYTES for array in parts.values())
    expected, got = reference(model, beside).run(image), reference(separated, parts).run(image)
    np.testing.assert_array_equal(got[0], expected[0])


def broken(model: onnx.ModelProto, how: str) -> None:
    split = next(node for node in model.graph.node if node.op_type == "Split")
    if how == "read by another":
        model.graph.output.append(helper.make_tensor_value_info(split.input[0], onnx.TensorProto.FLOAT, None))
    elif how == "other axis":
        next(attribute for attribute in split.attribute if attribute.name == "axis").i = 0
    elif how == "given sizes":
        sizes = numpy_helper.from_array(np.array([32, 32, 32]), "sizes")
        model.graph.initializer.append(sizes)
        split.input.append("sizes")
    else:
        name = next(t.name for t in model.graph.initializer if t.name.endswith("qkv/w"))
        model.graph.node.insert(0, helper.make_node("Identity", [name], ["computed"], name="computed"))
        next(node for node in model.graph.node if name in node.input and node.op_type == "Gemm").input[1] = "computed"


@pytest.mark.parametrize("how", ["read by another", "other axis", "given sizes", "weights that are computed"])
def test_what_is_not_that_pattern_stays(how: str) -> None:
    model = assemble(tiny_program(depth=1, pool="mean"))
    assert "Split" in operators(model)
    assert "Split" not in operators(separate(model)[0])
    broken(model, how)
    assert "Split" in operators(separate(model)[0])


def test_a_constant_that_somebody_still_reads_is_not_dropped() -> None:
    model = assemble(tiny_program())
    constants: Any = Constants(model, {})
    read = model.graph.node[0].input[1]
    constants.drop([read], model)
    assert read in constants
