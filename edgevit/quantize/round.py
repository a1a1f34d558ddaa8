"""Round weights so that the errors of a column cancel in the Linear's output, not each weight for itself.

GPTQ (Frantar et al., 2023), with the Linear's own inputs on calibration images: rows of the weight are rounded one
after the other, and what rounding one does to the output is taken back by those not rounded yet, as far as the second
moments of the inputs tell that they can. It costs nothing at run time: the grid, symmetric per output column, is the
one that lowering would round to anyway.

What a row has to take back is read off one Cholesky factor of the moments, from its end on (LDLQ: Chee et al., QuIP,
2023, theorem 6); GPTQ's own factor of the inverse says the same for three times the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from edgevit.program.program import Program
from edgevit.quantize.observe import Ranges
from edgevit.schema.int16_sums import ROOM, Products, int16_groups
from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from edgevit.util.progress import track
from edgevit.util.threads import in_order

# Added to every moment, of their mean: how far the images that were seen are believed. GPTQ's own value.
DAMPING = 0.01
# Rows that give way at once; later ones hear of all errors of a block in one product.
BLOCK = 64


def gptq_rounder(program: Program, ranges: Ranges) -> Callable[[QuantPlan], Program]:
    """Return what gives the Program with the weights of a plan's int8 Linears on their grid; each is rounded only once.

    Rounding such a Program again changes nothing. A Linear whose input was not seen stays as it is (a patch stem, which
    takes the image's bytes), and so do outlier columns, which are multiplied in float, and biases.
    """

    @cache
    def weight(entry: LinearPlan, bits: int, products: Products) -> np.ndarray:
        seen = ranges.tensor(entry.name)
        assert seen is not None
        given = program.weights[f"{entry.name}.weight"]
        moments = shrink_covariance(seen.moments, seen.rows)
        return round_weight(given, moments, bits, noise=entry.scale**2 / 12, exact=entry.outliers, products=products)

    def rounded(plan: QuantPlan) -> Program:
        entries = [e for e in plan.linears if e.int8 and ranges.tensor(e.name) is not None]
        made = in_order(lambda entry: weight(entry, plan.weight_bits, plan.int16_products), entries)
        shown = track(zip(entries, made, strict=True), "Rounding weights", len(entries))
        return program.with_weights({f"{entry.name}.weight": values for entry, values in shown})

    return rounded


def shrink_covariance(moments: np.ndarray, rows: int) -> np.ndarray:
    """Moments of so many rows, `[in, in]`, with what two columns seem to share made smaller as far as it may be chance.

    The share that minimises the expected squared error (Schaefer and Strimmer, 2005, target D), with the variances that
    normally distributed values would have. Of few rows little but the diagonal is left.
    """
    h = moments.astype(np.float64)
    diagonal = h.diagonal().copy()
    squares = (h**2).sum() - (diagonal**2).sum()
    variances = (squares + diagonal.sum() ** 2 - (diagonal**2).sum()) / rows
    h *= 1 - min(1.0, variances / squares if squares > 0 else 1.0)
    h[np.diag_indices_from(h)] = diagonal
    return h


class Fits:
    """What rounding may give the weights `[rows, columns]` so that sums in 16 bits never overflow.

    Weights of one sign in a group are lowered to what its room allows, each by as much: so the error stays smallest,
    and GPTQ lets other rows give way for it. Rounding one then leaves so much less room for those that follow.

    Args:
        steps: the weights in steps, not rounded.
        top: the row of each column's largest weight, which stays as it is.
        largest: its steps.
        groups: of each row.
    """

    def __init__(self, steps: np.ndarray, top: np.ndarray, largest: np.ndarray, groups: np.ndarray) -> None:
        self.top, self.groups = top, groups
        columns = np.arange(steps.shape[1])
        self.room = np.full((2, groups.max() + 1, len(columns)), float(ROOM))
        others = steps.copy()
        others[top, columns] = 0
        self.most = np.full((2, *steps.shape), float(ROOM))
        for sign, room, most in zip((1, -1), self.room, self.most, strict=True):
            room[groups[top], columns] -= np.maximum(sign * largest, 0)
            wanted = np.maximum(sign * others, 0)
            excess = _excess(wanted, groups, room)[groups]
            # Where all of a group fit, rounding may raise any of them.
            np.copyto(most, np.rint(np.maximum(wanted - excess, 0)), where=excess > 0)

    def clipped(self, row: int, steps: np.ndarray) -> np.ndarray:
        """Return the steps of a row as far as there is room, and take it."""
        group, own = self.groups[row], self.top != row
        high, low = np.minimum(self.most[:, row], self.room[:, group])
        steps = np.clip(steps, -low, high)
        for sign, room in zip((1, -1), self.room, strict=True):
            room[group] -= np.maximum(sign * steps, 0) * own
        return steps


def _excess(wanted: np.ndarray, groups: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Return what every value of a group, 0 or more, is lowered by until what stays above 0 fits, `[groups, columns]`.

    Of the k largest, by (their sum - room) / k: as of the projection onto a simplex (Held, Wolfe and Crowder, 1974).
    """
    members: list[list[int]] = [[] for _ in room]
    for row, group in enumerate(groups):
        members[group].append(row)
    most = max(map(len, members))
    # A row of zeros fills groups up.
    table = np.array([[*own, *[len(wanted)] * (most - len(own))] for own in members])
    values = np.concatenate([wanted, np.zeros_like(wanted[:1])])[table]
    sums = np.cumsum(-np.sort(-values, axis=1), axis=1)
    shares = (sums - room[:, None]) / np.arange(1, most + 1)[:, None]
    return np.asarray(np.maximum(shares.max(axis=1), 0))


def round_weight(
    weight: np.ndarray,
    moments: np.ndarray,
    bits: int,
    *,
    noise: float = 0.0,
    exact: tuple[int, ...] = (),
    products: Products = 2,
) -> np.ndarray:
    """Return one weight `[in, out]` on its grid, float32.

    Args:
        weight: float32 `[in, out]`.
        moments: mean of the products of any two input columns, `[in, in]`.
        bits: of the grid, whose largest step is each column's largest weight.
        noise: variance of what rounding the input adds to each of its columns.
        exact: input columns that are not rounded, and not in the grid.
        products: as many as are added in 16 bits, without overflow; of 2 every grid of 7 bits is sure.
    """
    limit = 2 ** (bits - 1) - 1
    kept = np.setdiff1d(np.arange(len(weight)), np.array(exact, dtype=np.int64))
    h = moments[np.ix_(kept, kept)].astype(np.float64)
    h[np.diag_indices_from(h)] += DAMPING * h.diagonal().mean() + noise
    # Rows whose input is large first: the others can still give way.
    order = np.argsort(-h.diagonal(), kind="stable")
    rows = kept[order]
    backwards = order[::-1]
    # The factor from the last row on: h = factor @ factor.T, upper triangular in the order of rounding.
    factor = np.linalg.cholesky(h[np.ix_(backwards, backwards)])[::-1, ::-1]
    values = weight[rows].astype(np.float64)
    scale = np.maximum(np.abs(values).max(axis=0), 1e-12) / limit
    # The largest weight of a column stays, so that whoever rounds again finds the same grid.
    top = np.abs(values).argmax(axis=0)
    largest = np.sign(values[top, np.arange(values.shape[1])]) * limit
    errors, found = np.empty_like(values), weight.copy()
    fits = Fits(values / scale, top, largest, int16_groups(len(weight), products)[rows]) if products > 2 else None
    for first in range(0, len(values), BLOCK):
        last = min(first + BLOCK, len(values))
        shares = factor[:last, first:last] / factor.diagonal()[first:last]
        wanted = values[first:last] - shares[:first].T @ errors[:first]
        for i in range(first, last):
            row = wanted[i - first] - shares[first:i, i - first] @ errors[first:i]
            steps = np.clip(np.rint(row / scale), -limit, limit)
            steps = np.where(top == i, largest, steps if fits is None else fits.clipped(i, steps))
            found[rows[i]] = steps * scale
            errors[i] = steps * scale - values[i]
    return found
