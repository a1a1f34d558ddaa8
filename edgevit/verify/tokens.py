"""Tokens of an image are as many as the reference has, and what runs is what they say.

A point where tokens merge compares cosines with a threshold, so rounding may move an image to the next number of pairs:
a run may differ from its reference where every cosine that decides lies within a stated margin of the threshold. From
there on two models compute different functions, so it is not compared further, as where a gate differs.

Where the runtime tells the shapes that its kernels have, their MACs are held against those of the run's own `gates` and
`tokens`: equal, or a row ran that nobody counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgevit.errors import ParityError, SkipError
from edgevit.program.macs import run_macs, stem_macs
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import fewest_left, most_left
from edgevit.schema.claims import PathTokens, TokenFigures
from edgevit.schema.manifest import PointUse, Spread, TokenUse
from edgevit.schema.points import effort_text

# (image, effort) to (MACs of every matrix kernel by name, gates `[branches]`, tokens `[points]`).
Kernels = Callable[[np.ndarray, float], tuple[Mapping[str, int], np.ndarray, np.ndarray]]


class Counting(Protocol):
    """A runner that tells tokens too."""

    def answer(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class PointMargins:
    """How sure a reference is of the number of pairs at one point of one run.

    Attributes:
        branch: the place of the branch that it comes after.
        counts: pairs that it may merge (`tokens.pair_counts`).
        margins: how far the last pair of each number but the first is above the threshold, in cosines.
        left: patch tokens that were left.
        scores: cosines of the first set with the second, float `[F, S]` (None: not told).
    """

    branch: int
    counts: tuple[int, ...]
    margins: np.ndarray
    left: int
    scores: np.ndarray | None = None

    @property
    def chosen(self) -> int:
        """Return how many pairs the reference merges, or would if it were not given others."""
        return self.counts[int((self.margins > 0).sum())]

    @property
    def chosen_left(self) -> int:
        """Return how many patch tokens that leaves, of those that come to the point."""
        assert self.scores is not None
        return sum(self.scores.shape) - self.chosen

    def margin(self, pairs: int, other: int) -> float:
        """Return the largest margin of all numbers between two; inf where the point does not allow one of them."""
        if not {pairs, other} <= set(self.counts):
            return np.inf
        low, high = sorted((self.counts.index(pairs), self.counts.index(other)))
        return float(np.abs(self.margins[low:high]).max(initial=0.0))


def first_moved(points: Sequence[PointMargins], patches: int, got: np.ndarray) -> tuple[int, float] | None:
    """Return the first point where a run left other tokens than its reference: its branch, and the largest margin.

    The margin is of all numbers of pairs between both, inf where the run has a number that the point does not allow.
    """
    if len(got) != len(points):
        raise ParityError(f"{len(got)} numbers of tokens were given, expected {len(points)}")
    for point, found in zip(points, got, strict=True):
        if point.left != found:
            return point.branch, point.margin(patches - int(found), patches - point.left)
        patches = point.left
    return None


def moved_by(point: PointMargins, pairs: int) -> float | None:
    """Return how far a cosine that decides lies from the threshold, where a run merged another number of pairs."""
    return None if pairs == point.chosen else point.margin(pairs, point.chosen)


def check_token_macs(
    spec: ProgramSpec, kernels: Kernels, images: np.ndarray, *, efforts: Sequence[float]
) -> TokenFigures:
    """Hold the MACs of the kernels that run against those of the run's gates and tokens.

    Raises:
        SkipError: they differ, or a number of tokens is one that cannot be.
    """
    fewest, most, paths = np.array(fewest_left(spec)), np.array(most_left(spec)), []
    for image in images:
        for effort in efforts:
            macs, gates, tokens = kernels(image[None], effort)
            where = f"effort {effort_text(effort)}, tokens {', '.join(map(str, tokens))}"
            if tokens.shape != most.shape or (tokens < fewest).any() or (tokens > most).any():
                raise SkipError(f"{where}: allowed are {list(fewest)} to {list(most)}")
            ran, said = sum(macs.values()), run_macs(spec, gates, tokens) - stem_macs(spec)
            if ran != said:
                raise SkipError(
                    f"{where}: kernels after the stem ran {ran} MACs, gates and tokens explain {said}; rows ran that "
                    "no token stands for, or the other way around"
                )
            paths.append(PathTokens(effort=effort, tokens=tuple(map(int, tokens)), macs=run_macs(spec, gates, tokens)))
    return TokenFigures(paths=tuple(paths))


def token_use(spec: ProgramSpec, gates: np.ndarray, tokens: np.ndarray) -> TokenUse:
    """Return how tokens and MACs are spread over images, from their gates `[n, branches]` and tokens `[n, points]`."""
    macs = np.array([run_macs(spec, opened, left) for opened, left in zip(gates, tokens, strict=True)], dtype=float)
    points = zip(spec.merges, tokens.T, most_left(spec), fewest_left(spec), strict=True)
    return TokenUse(
        images=len(tokens),
        macs=_spread(macs),
        points=tuple(
            PointUse(after=point.after, left=_spread(left), most=most, fewest=fewest)
            for point, left, most, fewest in points
        ),
    )


def _spread(values: np.ndarray) -> Spread:
    low, high = np.percentile(values, (10, 90))
    return Spread(mean=float(values.mean()), low=float(low), high=float(high))
