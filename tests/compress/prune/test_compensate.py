from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgevit.compress.prune.compensate import columns_of, compensated, removal_order, ridged


def _data(width: int = 8, out: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((400, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)
    return a, rng.standard_normal((width, out)), rng.standard_normal(out)


def _error(a: np.ndarray, weight: np.ndarray, bias: np.ndarray, keep: np.ndarray) -> float:
    w, b = compensated(weight, bias, a.mean(0), np.cov(a.T, bias=True), keep)
    return float(np.mean((a @ weight + bias - a[:, keep] @ w - b) ** 2))


def test_compensation_is_the_least_squares_fit_of_the_lost_output() -> None:
    a, weight, bias = _data()
    keep = np.array([0, 2, 3, 5, 7])
    design = np.column_stack([a[:, keep], np.ones(len(a))])
    best = np.linalg.lstsq(design, a @ weight + bias, rcond=None)[0]
    w, b = compensated(weight, bias, a.mean(0), np.cov(a.T, bias=True), keep)
    np.testing.assert_allclose(np.vstack([w, b]), best, atol=0.05)
    plain = np.mean((a @ weight - a[:, keep] @ weight[keep]) ** 2)
    assert _error(a, weight, bias, keep) < 0.7 * plain


def test_a_column_that_others_predict_is_removed_for_free() -> None:
    a, weight, bias = _data()
    a[:, 3] = 2 * a[:, 0] - a[:, 6] + 1
    keep = np.delete(np.arange(8), 3)
    assert _error(a, weight, bias, keep) < 1e-3 * _error(a, weight, bias, np.delete(np.arange(8), 1))


def test_nothing_kept_leaves_the_mean_and_everything_kept_changes_nothing() -> None:
    a, weight, bias = _data()
    w, b = compensated(weight, bias, a.mean(0), np.cov(a.T, bias=True), np.arange(0))
    assert w.shape == (0, 5)
    np.testing.assert_allclose(b, (a @ weight + bias).mean(0))
    w, b = compensated(weight, bias, a.mean(0), np.cov(a.T, bias=True), np.arange(8))
    assert w is weight and b is bias


@pytest.mark.parametrize("unit", [1, 2])
def test_every_removal_is_the_cheapest_of_what_is_left(unit: int) -> None:
    a, weight, bias = _data()
    order = removal_order(weight, np.cov(a.T, bias=True), unit)
    assert sorted(order) == list(range(8 // unit))
    for done in range(len(order) - 1):
        left = order[done:]
        errors = {u: _error(a, weight, bias, columns_of(sorted(set(left) - {u}), unit)) for u in left}
        assert errors[order[done]] == pytest.approx(min(errors.values()), rel=0.02)


def test_greedy_order_is_close_to_the_best_pair() -> None:
    a, weight, bias = _data(seed=3)
    order = removal_order(weight, np.cov(a.T, bias=True), 1)
    pairs = [_error(a, weight, bias, np.delete(np.arange(8), pair)) for pair in itertools.combinations(range(8), 2)]
    assert _error(a, weight, bias, np.delete(np.arange(8), order[:2])) <= sorted(pairs)[2]


def test_removing_many_at_once_keeps_a_permutation_and_starts_alike() -> None:
    a, weight, _ = _data(width=24)
    covariance = np.cov(a.T, bias=True)
    one, many = removal_order(weight, covariance, 1), removal_order(weight, covariance, 1, at_once=5)
    assert sorted(many) == list(range(24)) and many[0] == one[0]


def test_ridge_makes_a_dead_covariance_invertible() -> None:
    assert np.isfinite(np.linalg.inv(ridged(np.zeros((3, 3))))).all()
