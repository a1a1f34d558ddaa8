"""One Linear under a plan: int8 values, scales, bias and outlier columns are what arithmetic says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.onnx_form.graph import Graph, model, tensor
from edgevit.onnx_form.linear import linear, quantize_weight
from edgevit.schema.quant_plan import LinearPlan, QuantPlan


def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, plan: QuantPlan | None) -> np.ndarray:
    graph = Graph("one")
    y = linear(graph, "b00_ffn.fc2", "x", weight, bias, plan)
    built, _ = model(graph, [tensor("x", x.shape)], [tensor(y, (len(x), weight.shape[1]))], "test")
    onnx.checker.check_model(built, full_check=True)
    options = onnxruntime.SessionOptions()
    # As written: rounded values in float arithmetic, so the test does not depend on this CPU's int8 kernels.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(onnxruntime.InferenceSession(built.SerializeToString(), options).run(None, {"x": x})[0])


def plan_of(x: np.ndarray, *, outliers: tuple[int, ...] = (), bits: int = 8) -> QuantPlan:
    kept = np.delete(x, outliers, axis=1)
    low, high = min(float(kept.min()), 0.0), max(float(kept.max()), 0.0)
    scale = (high - low) / 255
    entry = LinearPlan(name="b00_ffn.fc2", int8=True, scale=scale, zero_point=round(-low / scale), outliers=outliers)
    return QuantPlan(linears=(entry,), weight_bits=bits)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([7, 8]))
def test_weights_round_to_the_nearest_step(seed: int, bits: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(24, 8)).astype(np.float32)
    values, scale = quantize_weight(weight, bits)
    assert np.abs(values).max() == 2 ** (bits - 1) - 1
    assert np.abs(values * scale - weight).max() <= 0.5001 * scale.max()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_int8_is_near_float(seed: int, with_bias: bool) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(5, 24)).astype(np.float32)
    weight = random.normal(size=(24, 8)).astype(np.float32)
    bias = random.normal(size=8).astype(np.float32) if with_bias else None
    expected = run(x, weight, bias, None)
    np.testing.assert_allclose(expected, x @ weight + (0 if bias is None else bias), atol=1e-5)
    assert np.abs(run(x, weight, bias, plan_of(x)) - expected).max() < 0.25


def test_outlier_columns_are_exact_and_free_the_rest() -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(16, 24)).astype(np.float32)
    x[:, 5] *= 500
    weight, bias = random.normal(size=(24, 8)).astype(np.float32), random.normal(size=8).astype(np.float32)
    expected = x @ weight + bias
    whole = np.abs(run(x, weight, bias, plan_of(x)) - expected).max()
    split = np.abs(run(x, weight, bias, plan_of(x, outliers=(5,))) - expected).max()
    assert whole > 5
    assert split < 0.3


def test_a_linear_that_the_plan_leaves_float_is_float() -> None:
    x = np.ones((2, 4), dtype=np.float32)
    plan = QuantPlan(linears=(LinearPlan(name="b00_ffn.fc2", int8=False, reason="kept float"),))
    assert run(x, np.eye(4, dtype=np.float32), None, plan) == pytest.approx(x)
