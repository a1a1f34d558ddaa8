"""Runs of a build where tokens merge: held against the reference under the same pairs, and each choice by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from edgevit.errors import ParityError
from edgevit.program.tokens import halves
from edgevit.schema.claims import Tolerance
from edgevit.verify.pairs import Choices, Pairs, check_pairs, compare_pairs
from edgevit.verify.tokens import Counting, PointMargins, first_moved, moved_by

# Takes an image and an effort, and the pairs of every point where it is to merge those (else it chooses itself); gives
# logits, gates, margins and, where tokens merge, the `PointMargins` of every point.
Reference = Callable[..., tuple[Any, ...]]
# (image, effort) to (all outputs of a run of the build, the pairs that it merged at every point).
Merged = Callable[[np.ndarray, float], tuple[Any, tuple[Pairs, ...]]]


class Runner(Protocol):
    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]: ...


class Run(NamedTuple):
    """A run of the build, and what it is held against: its reference, under the same pairs where they are known."""

    logits: np.ndarray
    gates: np.ndarray
    tokens: np.ndarray
    pairs: tuple[Pairs, ...] | None
    expected: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Build:
    """The build, and what tells its pairs."""

    runner: Runner
    merged: Merged | None

    def run(self, reference: Reference, image: np.ndarray, effort: float, told: tuple[Any, ...]) -> Run:
        """Run one image; `told` is what the reference says of it with pairs of its own."""
        points = points_of(told)
        if not points:
            return Run(*self.runner.run(image, effort), np.zeros(0, np.int32), None, told)
        answer = cast(Counting, self.runner).answer(image, effort)
        if self.merged is None:
            return Run(*answer, None, told)
        again, pairs = self.merged(image, effort)
        if not all(np.array_equal(one, other) for one, other in zip(answer, again, strict=True)):
            return Run(*answer, None, told)
        _check_told(points, pairs)
        return Run(*answer, pairs, told if _same(points, pairs) else reference(image, effort, pairs))


def _check_told(points: Sequence[PointMargins], pairs: Sequence[Pairs]) -> None:
    """Refuse pairs that no reference could be given: of other points, numbers or tokens than there are.

    Which numbers there are depends on the rows that come to a point: where the build brings others than the reference
    does by itself, only the reference under the same pairs can tell, and `judge_merges` asks it.
    """
    if len(points) != len(pairs):
        raise ParityError(f"the build merges tokens at {len(pairs)} points, the reference at {len(points)}")
    assert points[0].scores is not None
    patches = sum(points[0].scores.shape)
    for point, each in zip(points, pairs, strict=True):
        first, second = halves(patches)
        assert point.scores is not None
        same_rows = sum(point.scores.shape) == patches
        if len(each.into) != first or (same_rows and len(each.merged) not in point.counts):
            raise ParityError(
                f"the build merges {len(each.merged)} of {len(each.into)} tokens after branch {point.branch}, the "
                f"reference has {first} there; allowed: {', '.join(map(str, point.counts))}"
            )
        check_pairs(each, first, second)
        patches -= len(each.merged)


def _same(points: Sequence[PointMargins], pairs: Sequence[Pairs]) -> bool:
    """Return whether a reference merged these pairs by itself."""
    for point, each in zip(points, pairs, strict=True):
        assert point.scores is not None
        if sum(point.scores.shape) - point.left != len(each.merged) or compare_pairs(point.scores, each).other:
            return False
    return True


def under_same_pairs(
    reference: Reference, merged: Merged, image: np.ndarray, effort: float, tolerance: Tolerance
) -> np.ndarray | None:
    """Return the reference's logits `[1, classes]` of an image under the pairs that the build merges.

    None where the reference could not have merged these within the tolerance, or a gate differs.
    """
    (got, gates, tokens), pairs = merged(image, effort)
    try:
        _check_told(points_of(reference(image, effort)), pairs)
        run = Run(got, gates, tokens, pairs, reference(image, effort, pairs))
        _, choices = judge_merges(run, tolerance, 0, "")
    except ParityError:
        return None
    logits: np.ndarray = run.expected[0]
    return logits if not choices.far and np.array_equal(run.expected[1], run.gates) else None


def points_of(told: tuple[Any, ...]) -> tuple[PointMargins, ...]:
    return told[3] if len(told) > 3 else ()


def judge_merges(run: Run, tolerance: Tolerance, patches: int, where: str) -> tuple[bool, Choices]:
    """Return whether a number of pairs differs from the reference's, within the tolerance, and how its pairs do.

    What comes after a gate that differs is not judged. How many pairs may be far from the reference's is for all runs
    together to say: int8 now and then moves one token far.
    """
    points = points_of(run.expected)
    flipped = np.flatnonzero(run.expected[1] != run.gates)
    end = int(flipped[0]) if flipped.size else len(run.gates)
    if run.pairs is None:
        other = first_moved(points, patches, run.tokens) if run.tokens.size else None
        if other is None or other[0] >= end:
            return False, Choices()
        _check_moved(other[1], tolerance, run.tokens, [point.left for point in points], where)
        return True, Choices()
    moved, choices = False, Choices()
    for point, pairs in zip(points, run.pairs, strict=True):
        if point.branch >= end:
            break
        if (margin := moved_by(point, len(pairs.merged))) is not None:
            _check_moved(margin, tolerance, run.tokens, [point.chosen_left], where)
            moved = True
        assert point.scores is not None
        choices += compare_pairs(point.scores, pairs, tolerance.pair_margin)
    return moved, choices


def _check_moved(margin: float, tolerance: Tolerance, tokens: np.ndarray, expected: Sequence[int], where: str) -> None:
    if margin > tolerance.token_margin:
        raise ParityError(
            f"{where}: tokens left are {[int(n) for n in tokens]}, the reference has {list(expected)} with a cosine "
            f"{margin:.4g} from the threshold; only numbers within {tolerance.token_margin:.3g} of it may differ"
        )
