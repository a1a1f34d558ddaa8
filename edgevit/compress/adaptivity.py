"""What it is worth that a Program's work follows the image: its cost per image, and what it loses without that.

`freeze` makes every decision once, for all images, at the same mean cost: a gate stays as it mostly is, a point merges
as many pairs as on average. What the frozen Program loses against the one that decides is what deciding is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgevit.compress.gate.judge import Answers, answers
from edgevit.compress.gate.threshold import Use
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.program.tokens import patches_before
from edgevit.tasks.sensitivity import drift

RARELY = 0.01  # of the images: a gate that decides otherwise for fewer does not vary
PERCENTILES = (0, 10, 50, 90, 100)
HALVINGS = 20


@dataclass(frozen=True, kw_only=True)
class Adaptivity:
    """How the cost follows the image, and what freezing every decision at the same mean cost changes.

    Attributes:
        images: how many were asked, one by one.
        macs: mean MACs of an image, as a part of the original's; `deviation` is their standard deviation.
        deviation: see `macs`.
        percentiles: least, 10th, 50th, 90th percentile and most of the same.
        gates: how many gates there are; `varying` are those that decide otherwise for 1 % of the images or more.
        varying: see `gates`.
        points: how many points merge as many tokens as the image allows.
        frozen_macs: MACs of the frozen Program, which are the same for every image.
        top1: share of labelled images that are classified right; None without labels.
        frozen_top1: the same of the frozen Program.
        drift: mean KL divergence of the classes from the original's in nats; None where it did not answer.
        frozen_drift: the same of the frozen Program.
    """

    images: int
    macs: float
    deviation: float
    percentiles: tuple[float, ...]
    gates: int
    varying: int
    points: int
    frozen_macs: float
    top1: float | None = None
    frozen_top1: float | None = None
    drift: float | None = None
    frozen_drift: float | None = None

    @property
    def said(self) -> str:
        """Return the figures in a sentence or two."""
        low, high = self.percentiles[1], self.percentiles[3]
        words = f"cost per image {low:.1%} to {high:.1%} of the MACs (10th to 90th percentile, mean {self.macs:.1%})"
        parts = []
        if self.top1 is not None and self.frozen_top1 is not None:
            parts.append(f"top-1 {self.frozen_top1:.1%} instead of {self.top1:.1%}")
        if self.drift is not None and self.frozen_drift is not None:
            parts.append(f"drift {self.frozen_drift:.3g} instead of {self.drift:.3g}")
        frozen = f"every decision frozen at {self.frozen_macs:.1%}: " + ", ".join(parts)
        return f"{words}; {frozen}" if parts else words


def measure_adaptivity(
    program: Program,
    images: np.ndarray,
    found: Answers,
    *,
    whole_macs: int,
    labels: np.ndarray | None = None,
    original: np.ndarray | None = None,
) -> Adaptivity | None:
    """Freeze a Program by what it decided for the images, and let it answer them again.

    Args:
        program: with gates, or merges whose number follows the image; None is returned for another.
        images: uint8 `[n, height, width, 3]`.
        found: the Program's answers to them, one by one.
        whole_macs: MACs of the original.
        labels: class numbers `[n]`, negative for an image without one.
        original: its logits `[n, classes]`.
    """
    spec = program.spec
    if not (spec.gated or spec.adaptive):
        return None
    frozen = freeze(program, Use(found.ran, found.left), found.macs)
    again = answers(frozen, images, description="Evaluating with decisions frozen")
    known = np.zeros(len(images), bool) if labels is None else np.asarray(labels) >= 0
    shares = found.image_macs / whole_macs
    gated = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    rates = found.ran[:, gated].mean(axis=0)

    def top1(logits: np.ndarray) -> float | None:
        right = logits.argmax(axis=1) == labels
        return float(right[known].mean()) if known.any() else None

    return Adaptivity(
        images=len(images),
        macs=float(shares.mean()),
        deviation=float(shares.std()),
        percentiles=tuple(float(p) for p in np.percentile(shares, PERCENTILES)),
        gates=len(gated),
        varying=int(((rates >= RARELY) & (rates <= 1 - RARELY)).sum()),
        points=sum(point.threshold is not None for point in spec.merges),
        frozen_macs=again.macs / whole_macs,
        top1=top1(found.logits),
        frozen_top1=top1(again.logits),
        drift=None if original is None else drift(original, found.logits).kl,
        frozen_drift=None if original is None else drift(original, again.logits).kl,
    )


def freeze(program: Program, use: Use, macs: float) -> Program:
    """Return the Program with every decision made for all images, at about `macs` an image.

    Branches that ran most often stay, as many as come nearest to the cost: their most frequent value, where that costs
    as much. Points merge the mean number of pairs; where branches do not fit the cost, all of them more or fewer.

    Args:
        program: with gates, or merges whose number follows the image.
        use: what ran, from `usage` or `answers`.
        macs: mean MACs of an image.
    """
    spec = program.spec
    pairs = _mean_pairs(spec, use.left)
    gated = [i for i, b in enumerate(spec.branches) if b.gate is not None]
    often = [gated[i] for i in np.argsort(-use.ran[:, gated].mean(axis=0), kind="stable")]
    tried = [_frozen(spec, often[:count], pairs) for count in range(len(often) + 1)]
    nearest = min(tried, key=lambda one: abs(total_macs(one) - macs))
    return program.with_weights({}, _with_tokens_for(nearest, spec, pairs, macs))


def _mean_pairs(spec: ProgramSpec, left: np.ndarray) -> list[float]:
    """Return mean pairs merged at every point, from tokens left `[n, points]`."""
    before = np.array([patches_before(spec, row) for row in left]).reshape(left.shape)
    return [float(count) for count in (before - left).mean(axis=0)]


def _frozen(spec: ProgramSpec, opened: list[int], pairs: list[float]) -> ProgramSpec:
    """Return the spec in which these gated branches always run and the others never."""
    branches = []
    for index, branch in enumerate(spec.branches):
        if branch.gate is None:
            branches.append(branch)
        elif index in opened:
            branches.append(replace(branch, gate=None, skip=False))
        else:
            branches.append(replace(branch, kept=(), gate=None))
    return replace(spec, branches=tuple(branches), merges=_fixed(spec, pairs))


def _fixed(spec: ProgramSpec, pairs: list[float]) -> tuple[MergeSpec, ...]:
    """Return points that merge these numbers of pairs for every image; fixed ones stay, empty ones go."""
    points, left = [], spec.patches
    for point, count in zip(spec.merges, pairs, strict=True):
        fixed = min(round(count) if point.threshold is not None else point.count, left // 2)
        left -= fixed
        if fixed > 0:
            points.append(replace(point, count=fixed, least=0, threshold=None))
    return tuple(points)


def _with_tokens_for(frozen: ProgramSpec, spec: ProgramSpec, pairs: list[float], macs: float) -> ProgramSpec:
    """Return the frozen spec with its tokens scaled so that its cost is nearest to `macs`."""
    low, high, best = 0.0, 2.0, frozen
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        scaled = replace(frozen, merges=_fixed(spec, [middle * count for count in pairs]))
        if abs(total_macs(scaled) - macs) < abs(total_macs(best) - macs):
            best = scaled
        low, high = (middle, high) if total_macs(scaled) > macs else (low, middle)
    return best
