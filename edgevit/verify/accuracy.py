"""As accurate as claimed: top-1 on labelled images, agreement with the float model on any, each with its interval.

The float model here is the one that was quantized, and the target's limits are of what quantization costs; what
compression cost before that is for `edgevit.verify.original` to say.

A limit is broken when even the near end of the interval lies beyond it: few images excuse a build less than many
would, but never fail it by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgevit.errors import AccuracyError
from edgevit.progress import track

Z = 1.959964  # 95 %, two-sided
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """`hits` of `images`, with the Wilson 95 % interval `low`..`high`."""

    hits: int
    images: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, n = {self.images})"


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Float top-1 minus the build's on the same images, with the 95 % interval of paired differences (McNemar)."""

    value: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} points ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """What was measured; the top-1 fields are None without labels. `cosine` is of the logits with the float model's."""

    agreement: Fraction
    cosine_mean: float
    cosine_min: float
    top1: Fraction | None
    float_top1: Fraction | None
    drop: Drop | None
    min_agreement: float
    max_top1_drop: float

    @property
    def summary(self) -> str:
        text = f"agrees with the float model on {self.agreement}"
        if self.top1 and self.float_top1:
            text += f"; top-1 {self.top1}, float {self.float_top1.value:.1%}"
        return text


@dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """The class that a build and the float model name for every image, int64 `[n]`; `cosines` of their logits."""

    build: np.ndarray
    floats: np.ndarray
    cosines: np.ndarray


def name_classes(run: Run, reference: Run, images: np.ndarray) -> Named:
    """Run both models, image uint8 `[1, height, width, 3]` to logits `[1, classes]`, on uint8 `[n, height, width, 3]`.

    Raises:
        AccuracyError: no images.
    """
    if not len(images):
        raise AccuracyError("accuracy was asked for on 0 images; give at least one")
    predicted, expected = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    cosines = np.zeros(len(images))
    for index, image in enumerate(track(images, "Comparing with the float model", total=len(images))):
        got, want = (model(image[None]).astype(np.float64).ravel() for model in (run, reference))
        predicted[index], expected[index] = got.argmax(), want.argmax()
        cosines[index] = got @ want / max(float(np.linalg.norm(got) * np.linalg.norm(want)), 1e-12)
    return Named(build=predicted, floats=expected, cosines=cosines)


def check_accuracy(
    run: Run,
    reference: Run,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    min_agreement: float,
    max_top1_drop: float,
) -> AccuracyResult:
    """Hold a build against the float model that was quantized.

    Args:
        run: the build, image uint8 `[1, height, width, 3]` to logits `[1, classes]`.
        reference: the float model, the same way.
        images: uint8 `[n, height, width, 3]`.
        labels: class numbers `[n]`, or None.
        min_agreement: fraction of images on which both must name the same class.
        max_top1_drop: fraction of top-1 that may be lost (only with labels).

    Raises:
        AccuracyError: no images, labels that do not fit, or a limit broken.
    """
    named = name_classes(run, reference, images)
    return judge(named, labels, min_agreement=min_agreement, max_top1_drop=max_top1_drop)


def judge(named: Named, labels: np.ndarray | None, *, min_agreement: float, max_top1_drop: float) -> AccuracyResult:
    """`check_accuracy` of what the models have named already."""
    count = len(named.build)
    if labels is not None and len(labels) != count:
        raise AccuracyError(f"got {len(labels)} labels for {count} images; every image needs one")
    right, float_right = (None, None) if labels is None else (named.build == labels, named.floats == labels)
    result = AccuracyResult(
        agreement=fraction(named.build == named.floats),
        cosine_mean=float(named.cosines.mean()),
        cosine_min=float(named.cosines.min()),
        top1=None if right is None else fraction(right),
        float_top1=None if float_right is None else fraction(float_right),
        drop=None if right is None or float_right is None else paired_drop(float_right, right),
        min_agreement=min_agreement,
        max_top1_drop=max_top1_drop,
    )
    _check_limits(result)
    return result


def fraction(hits: np.ndarray) -> Fraction:
    """Share of true values in bool `[n]`, with the Wilson score interval."""
    n, k = len(hits), int(hits.sum())
    p = k / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    # The interval touches 0 and 1 exactly where all or none hit; rounding must not carry it past the value.
    return Fraction(
        hits=k, images=n, value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half))
    )


def paired_drop(before: np.ndarray, after: np.ndarray) -> Drop:
    """Loss from bool `[n]` to bool `[n]` on the same images: only images that changed carry information."""
    n = len(before)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    value = (lost - won) / n
    half = Z * math.sqrt(max(lost + won - (lost - won) ** 2 / n, 0.0)) / n
    return Drop(value=value, low=value - half, high=value + half, images=n)


def _check_limits(result: AccuracyResult) -> None:
    faults = []
    if result.agreement.high < result.min_agreement:
        faults.append(
            f"agreement with the float model that was quantized is {result.agreement}, at least "
            f"{result.min_agreement:.1%} asked"
        )
    if result.drop is not None and result.drop.low > result.max_top1_drop:
        faults.append(
            f"quantization drops top-1 by {result.drop.value:.1%} ({result.drop.low:.1%} to {result.drop.high:.1%}, "
            f"n = {result.drop.images}), at most {result.max_top1_drop:.1%} allowed"
        )
    if faults:
        raise AccuracyError(
            "; ".join(faults) + ". Keep the most sensitive Linears float, calibrate on more images, or relax the "
            "target's limits, min_agreement and max_top1_drop"
        )
