from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.onnx_form.linear import quantize_weight
from edgevit.quantize.plan import plan_quantization
from edgevit.quantize.round import DAMPING, gptq_rounder, round_weight, shrink_covariance
from edgevit.schema.int16_sums import int16_exact, int16_groups
from edgevit.schema.quant_plan import QuantPlan
from edgevit.tasks.sensitivity import drift
from tests.quantize.watched import logits, watched, with_outlier
from tests.tiny import tiny_images, tiny_program


def nearest(weight: np.ndarray, bits: int) -> np.ndarray:
    """Each weight rounded for itself."""
    values, scale = quantize_weight(weight, bits)
    return np.asarray(values * scale)


def related(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Inputs whose columns have much in common, as those of a Linear in a trained network."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.02, width).astype(np.float32)
    x = rng.standard_normal((rows, width)).astype(np.float32) * spread
    turned = np.linalg.qr(np.random.default_rng(7).standard_normal((width, width)))[0]
    return np.asarray(x @ turned.astype(np.float32))


def moved(x: np.ndarray, weight: np.ndarray, rounded: np.ndarray) -> float:
    return float(((x @ (rounded - weight)) ** 2).mean())


WEIGHT = np.random.default_rng(5).standard_normal((48, 20)).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.integers(1, 90), st.integers(1, 9), st.integers(0, 3), st.floats(0.0, 4.0))
def test_sums_of_four_products_fit_sixteen_bits(seed: int, width: int, out: int, exact: int, slope: float) -> None:
    rng = np.random.default_rng(seed)
    # From columns that all fit to such whose weights are all as large as the largest.
    weight = np.sign(rng.standard_normal((width, out))) * rng.uniform(0, 1, (width, out)) ** slope
    columns = tuple(range(min(exact, width - 1)))
    x = rng.standard_normal((rng.integers(1, 60), width)).astype(np.float32)
    moments = x.T @ x / len(x)
    rounded = round_weight(weight.astype(np.float32), moments, 7, exact=columns, products=4)
    rounded[list(columns)] = 0
    steps, scale = quantize_weight(rounded, 7)
    np.testing.assert_allclose(steps * scale, rounded, rtol=1e-6, atol=1e-12)
    assert int16_exact(steps, 4)
    again = round_weight(rounded, moments, 7, exact=columns, products=4)
    np.testing.assert_allclose(again, rounded, rtol=1e-6, atol=1e-12)


def test_what_already_fits_is_rounded_as_ever() -> None:
    x, small = related(500, 48), WEIGHT / np.abs(WEIGHT).max(axis=0) * 0.4
    small[::8] = np.sign(WEIGHT[::8])
    small[1::8] = small[4::8] = small[5::8] = 0
    moments = x.T @ x / len(x)
    np.testing.assert_array_equal(round_weight(small, moments, 7, products=4), round_weight(small, moments, 7))


def test_what_is_taken_from_a_group_is_shared_and_made_up_for() -> None:
    x = related(2000, 48)
    moments = x.T @ x / len(x)
    fitting, free = (round_weight(WEIGHT, moments, 7, products=products) for products in (4, 2))
    scale = np.abs(WEIGHT).max(axis=0) / 63
    assert not int16_exact(np.rint(free / scale), 4) and int16_exact(np.rint(fitting / scale), 4)
    # Cut off where they would overflow, without a word to the others, the same weights do more harm.
    cut = WEIGHT.copy()
    for group in np.unique(int16_groups(48, 4)):
        rows = np.flatnonzero(int16_groups(48, 4) == group)
        for sign in (1, -1):
            own = np.maximum(sign * cut[rows] / scale, 0)
            cut[rows] = np.where(sign * cut[rows] > 0, cut[rows] * 128 / np.maximum(own.sum(axis=0), 128), cut[rows])
    assert moved(x, WEIGHT, free) < moved(x, WEIGHT, fitting) < 0.5 * moved(x, WEIGHT, cut)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**16),
    st.integers(1, 90),
    st.integers(1, 9),
    st.sampled_from([7, 8]),
    st.integers(0, 3),
    st.sampled_from([0, 3]),
)
def test_rounding_again_changes_nothing(seed: int, width: int, out: int, bits: int, exact: int, dead: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((width, out)).astype(np.float32) * rng.uniform(1e-3, 1e3, out).astype(np.float32)
    weight[:, :dead] = 0
    columns = tuple(range(min(exact, width - 1)))
    x = rng.standard_normal((rng.integers(1, 60), width)).astype(np.float32)
    rounded = round_weight(weight, x.T @ x / len(x), bits, exact=columns)
    np.testing.assert_array_equal(rounded[list(columns)], weight[list(columns)])
    regular = rounded.copy()
    regular[list(columns)] = 0
    np.testing.assert_allclose(nearest(regular, bits), regular, rtol=1e-6, atol=0)
    # Lowering may scale them first (queries), and rounds in float32: the same steps nevertheless.
    factor = np.float32(0.14433756)
    np.testing.assert_array_equal(quantize_weight(regular * factor, bits)[0], quantize_weight(regular, bits)[0])


@pytest.mark.parametrize("bits", [7, 8])
def test_inputs_never_seen_come_out_twice_as_exact(bits: int) -> None:
    x, later = related(2000, 48), related(500, 48, seed=1)
    rounded = round_weight(WEIGHT, shrink_covariance(x.T @ x / len(x), len(x)), bits)
    assert moved(later, WEIGHT, rounded) < 0.5 * moved(later, WEIGHT, nearest(WEIGHT, bits))


def test_few_images_do_no_harm_to_others() -> None:
    x, later = related(8, 48), related(500, 48, seed=1)
    rounded = round_weight(WEIGHT, shrink_covariance(x.T @ x / len(x), len(x)), 7)
    assert moved(later, WEIGHT, rounded) < 1.05 * moved(later, WEIGHT, nearest(WEIGHT, 7))


def test_what_may_be_chance_is_shrunk_and_the_rest_is_left() -> None:
    x = related(4000, 48)
    moments = x.T @ x / len(x)
    many, few = shrink_covariance(moments, 4000), shrink_covariance(moments, 8)
    np.testing.assert_allclose(many.diagonal(), moments.diagonal())
    between = ~np.eye(48, dtype=bool)
    assert np.abs(many / moments)[between].min() > 0.95
    assert np.abs(few / moments)[between].max() < 0.5
    assert np.abs(shrink_covariance(np.eye(3), 5) - np.eye(3)).max() == 0


def test_columns_with_nothing_in_common_are_rounded_to_the_nearest() -> None:
    rounded = round_weight(WEIGHT, np.eye(48, dtype=np.float32), 7)
    np.testing.assert_allclose(rounded, nearest(WEIGHT, 7), rtol=1e-5, atol=1e-7)


def test_one_factor_says_what_gptqs_own_two_do() -> None:
    """GPTQ as published: row by row, with the Cholesky factor of the inverse of the moments."""
    x = related(500, 48)
    moments = x.T @ x / len(x)
    h = moments.astype(np.float64)
    h[np.diag_indices_from(h)] += DAMPING * h.diagonal().mean()
    order = np.argsort(-h.diagonal(), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    values = WEIGHT[order].astype(np.float64)
    scale = np.abs(values).max(axis=0) / 63
    top = np.abs(values).argmax(axis=0)
    largest = np.sign(values[top, np.arange(20)]) * 63
    for i in range(48):
        steps = np.where(top == i, largest, np.clip(np.rint(values[i] / scale), -63, 63))
        error = (values[i] - steps * scale) / upper[i, i]
        values[i] = steps * scale
        values[i + 1 :] -= np.outer(upper[i, i + 1 :], error)
    expected = np.empty_like(WEIGHT)
    expected[order] = values
    np.testing.assert_array_equal(round_weight(WEIGHT, moments, 7), expected)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = related(500, 48)
    moments = x.T @ x / len(x)
    whole = round_weight(WEIGHT, moments, 7)
    monkeypatch.setattr("edgevit.quantize.round.BLOCK", 5)
    np.testing.assert_array_equal(round_weight(WEIGHT, moments, 7), whole)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"removed": ("b00_mhsa",)}], ids=str)
def test_a_whole_model_keeps_what_is_not_int8_and_drifts_less(options: dict[str, Any]) -> None:
    program = with_outlier(tiny_program(depth=4, **options))
    before = {name: value.copy() for name, value in program.weights.items()}
    ranges = watched(program, 64)
    plan = plan_quantization(program, ranges, weight_bits=7)
    entries = tuple(dataclasses.replace(e, int8=e.name != "b01_ffn.fc1") for e in plan.linears)
    plan = dataclasses.replace(plan, linears=entries)
    rounded = gptq_rounder(program, ranges)(plan)
    changed = {name for name, value in rounded.weights.items() if (value != program.weights[name]).any()}
    assert changed == {f"{e.name}.weight" for e in entries if e.int8 and e.name != "stem"}
    assert all((program.weights[name] == value).all() for name, value in before.items())
    # Inputs in float, so that only the weights' rounding shows.
    fine = QuantPlan(linears=tuple(dataclasses.replace(e, scale=e.scale) for e in entries), weight_bits=7)
    images = tiny_images(program.spec, 32, seed=3)
    reference = logits(program, None, images)
    kl = [drift(reference, logits(made, None, images)).kl for made in (rounded, _nearest(program, fine))]
    assert kl[0] < 0.7 * kl[1]


def _nearest(program: Any, plan: QuantPlan) -> Any:
    weights = {}
    for entry in plan.linears[1:]:
        if entry.int8:
            values = program.weights[f"{entry.name}.weight"].copy()
            out = list(entry.outliers)
            values[out] = 0
            values = nearest(values, 7)
            values[out] = program.weights[f"{entry.name}.weight"][out]
            weights[f"{entry.name}.weight"] = values
    return program.with_weights(weights)
