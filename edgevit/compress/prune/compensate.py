"""Closed-form algebra of removing inputs of a linear: which to remove, and how the others make up for it.

Notation: a linear `y = a W + b` with `a [width]`, covariance `C` and mean `mu` of `a` on calibration tokens;
K are the columns kept, S those removed. numpy, float64.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-4


def ridged(covariance: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Return `C + ridge * mean(diag C) * I`: invertible, and dead columns cost nothing to remove."""
    level = ridge * float(np.mean(np.diag(covariance))) + 1e-12
    return covariance + level * np.eye(len(covariance))


def columns_of(positions: np.ndarray | list[int] | tuple[int, ...], unit: int) -> np.ndarray:
    """Return column indices of units of `unit` columns each."""
    return (np.asarray(positions, dtype=np.int64)[:, None] * unit + np.arange(unit)).reshape(-1)


def removal_order(weight: np.ndarray, covariance: np.ndarray, unit: int, *, at_once: int = 1) -> tuple[int, ...]:
    """Return the positions of all units in the order in which they are best removed (the first costs least).

    Greedy structured OBS (ZipLM, arXiv 2302.04089): the cost of removing S with optimal compensation is
    `tr(W_S^T (inv(C)_SS)^-1 W_S)`; `inv(C)` and W are updated after every removal.

    Args:
        weight: `[width, out]`.
        covariance: `[width, width]`.
        unit: columns per unit (head_dim, or 1 for neurons).
        at_once: units removed per update; costs inside one update are taken as independent.
    """
    units = len(weight) // unit
    inverse, w = np.linalg.inv(ridged(covariance)), weight.astype(np.float64)
    left, order = np.arange(units), []
    while len(left):
        costs = _unit_costs(inverse, w, unit)
        worst = np.sort(np.argsort(costs, kind="stable")[: min(at_once, len(left))])
        order += [int(u) for u in left[worst[np.argsort(costs[worst], kind="stable")]]]
        s = columns_of(worst, unit)
        k = np.delete(np.arange(len(w)), s)
        solved = np.linalg.solve(inverse[np.ix_(s, s)], np.hstack([w[s], inverse[np.ix_(s, k)]]))
        w = w[k] - inverse[np.ix_(k, s)] @ solved[:, : w.shape[1]]
        inverse = inverse[np.ix_(k, k)] - inverse[np.ix_(k, s)] @ solved[:, weight.shape[1] :]
        left = np.delete(left, worst)
    return tuple(order)


def _unit_costs(inverse: np.ndarray, w: np.ndarray, unit: int) -> np.ndarray:
    if unit == 1:
        return np.asarray((w * w).sum(axis=1) / np.diag(inverse))
    costs = []
    for start in range(0, len(w), unit):
        block = slice(start, start + unit)
        costs.append(np.sum(w[block] * np.linalg.solve(inverse[block, block], w[block])))
    return np.array(costs)


def compensated(
    weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, covariance: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight `[kept, out]` and bias `[out]` after removing all columns but `keep`.

    Ridge regression of the removed columns on the kept ones (CORP, arXiv 2602.05243) is folded in:
    `W_K + C_KK^-1 C_KS W_S` and `b + (mu_S - mu_K C_KK^-1 C_KS) W_S`.
    """
    gone = np.setdiff1d(np.arange(len(weight)), keep)
    if len(gone) == 0:
        return weight, bias
    if len(keep) == 0:
        return weight[:0], bias + mean @ weight
    w = weight.astype(np.float64)
    solved = np.linalg.solve(ridged(covariance[np.ix_(keep, keep)]), covariance[np.ix_(keep, gone)])
    return w[keep] + solved @ w[gone], bias + (mean[gone] - mean[keep] @ solved) @ w[gone]
