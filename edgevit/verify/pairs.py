"""Which tokens a run merged, and whether its reference could have merged them: every choice by what it gives away.

A merge picks partners and the best pairs by comparing cosines, so rounding decides between those that are all but
equal, and from there on two models compute different functions. A reference that is given a run's own pairs computes
the same function again, and says what each choice costs: how far the cosine of a pair that was merged lies below the
best that there was instead. Rounding gives away little, and seldom; a kernel that compares wrongly gives away much, or
often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevit.errors import ParityError


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """What one run merged at one point.

    Attributes:
        into: the partner of every token of the first set: its place in the second, int64 `[F]`.
        merged: places in the first set of those that were merged, in order, int64 `[C]`.
    """

    into: np.ndarray
    merged: np.ndarray

    @property
    def left(self) -> np.ndarray:
        """Return places in the first set of those that stay, in order."""
        return np.setdiff1d(np.arange(len(self.into)), self.merged)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How the pairs of a run differ from what its reference would have merged: as many, of the same tokens.

    Attributes:
        pairs: how many were merged.
        other: how many of them the reference would not have.
        loss: the most that one of them gives away, in cosines.
        far: how many give away more than the margin that was asked for.
    """

    pairs: int = 0
    other: int = 0
    loss: float = 0.0
    far: int = 0

    def __add__(self, more: Choices) -> Choices:
        return Choices(
            pairs=self.pairs + more.pairs,
            other=self.other + more.other,
            loss=max(self.loss, more.loss),
            far=self.far + more.far,
        )


def check_pairs(pairs: Pairs, first: int, second: int) -> None:
    """Refuse what are no pairs of `first` tokens with `second` others.

    Raises:
        ParityError: a place outside of them, or one that is merged twice.
    """
    merged, into = pairs.merged, pairs.into
    if (
        into.shape != (first,)
        or not ((into >= 0) & (into < second)).all()
        or not ((merged >= 0) & (merged < first)).all()
        or not (np.diff(merged) > 0).all()
    ):
        raise ParityError(f"the build tells {len(merged)} pairs that are none of {first} tokens with {second} others")


def compare_pairs(scores: np.ndarray, pairs: Pairs, margin: float = np.inf) -> Choices:
    """Hold the pairs of a run against the cosines float `[F, S]` that its reference has, given the pairs before.

    A pair gives away what its partner is less alike than the best one, and, where it was merged in another's place,
    what the other is more alike; `far` counts both where they are above `margin`.

    Raises:
        ParityError: these are no pairs of so many tokens.
    """
    first, second = scores.shape
    check_pairs(pairs, first, second)
    merged, into = pairs.merged, pairs.into
    if not len(merged):
        return Choices()
    best = scores.max(axis=1)
    own, left = np.zeros(first, bool), pairs.left
    own[(-best).argsort(kind="stable")[: len(merged)]] = True
    partner = best[merged] - scores[merged, into[merged]]
    rather = best[left].max() - best[merged].min() if len(left) else 0.0
    other = ~own[merged] | (partner > 0)
    swapped = min(len(merged), len(left))
    given = np.sort(best[left])[::-1][:swapped] - np.sort(best[merged])[:swapped]
    far = min(len(merged), int((partner > margin).sum() + (given > margin).sum()))
    return Choices(pairs=len(merged), other=int(other.sum()), loss=float(max(partner.max(), rather, 0.0)), far=far)
