"""As accurate as claimed: top-1 on labelled images, agreement with the float model on any, each with its interval.

The float model here is the one that was quantized, and the target's limits are of what quantization costs; what
compression cost before that is for `edgevit.verify.original` to say.
Agreement is that of decisions. The largest of one score is always the first, and features are no classes: there two
models agree on an image where what they give is near, measured in what images deviate by.

A limit is broken when even the near end of the interval lies beyond it: few images excuse a build less than many
would, but never fail it by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgevit.errors import AccuracyError
from edgevit.schema.claims import AccuracyResult, Decides, Drop, Fraction
from edgevit.util.progress import track
from edgevit.util.threads import in_order
from edgevit.verify.parity import deviation_over_images

Z = 1.959964  # 95 %, two-sided
NEAR = 0.5  # of the deviation over images: scores and features that say the same
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """What a build and the float model decide for every image, int64 `[n]`; `cosines` of their logits.

    Decisions are classes where `decides` says so, otherwise numbers that tell only whether both models agree.
    `explained` is where they do not, but would if the float model merged the tokens that the build merges, which are
    all but as alike as its own (None: not looked at); bool `[n]`.
    """

    build: np.ndarray
    floats: np.ndarray
    cosines: np.ndarray
    decides: Decides = "class"
    explained: np.ndarray | None = None


def name_classes(
    run: Run,
    reference: Run,
    images: np.ndarray,
    *,
    features: bool = False,
    least_deviation: float = 0.0,
    threads: int | None = 1,
) -> Named:
    """Run both models, image uint8 `[1, height, width, 3]` to logits `[1, classes]`, on uint8 `[n, height, width, 3]`.

    Args:
        run: the build.
        reference: the float model.
        images: what to run them on.
        features: the models have no classes; what they give is features of an image.
        least_deviation: what logits deviate by at least, whatever the images; see `verify.parity.deviation`.
        threads: how many may call the float model at once (None: one per core).

    Raises:
        AccuracyError: no images.
    """
    if not len(images):
        raise AccuracyError("accuracy was asked for on 0 images; give at least one")
    predicted, expected = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    cosines, kept = np.zeros(len(images)), []
    wanted = in_order(lambda image: reference(image[None]), images, threads)
    pairs = track(zip(images, wanted, strict=True), "Comparing with the float model", total=len(images))
    for index, (image, expects) in enumerate(pairs):
        got, want = (logits.astype(np.float64).ravel() for logits in (run(image[None]), expects))
        predicted[index], expected[index] = got.argmax(), want.argmax()
        cosines[index] = got @ want / max(float(np.linalg.norm(got) * np.linalg.norm(want)), 1e-12)
        if features or want.size == 1:
            kept.append((got, want))
    decides: Decides = "features" if features else "score" if kept else "class"
    if kept:
        got, want = (np.stack(side) for side in zip(*kept, strict=True))
        away = np.sqrt(((got - want) ** 2).mean(axis=1)) / deviation_over_images(want, least_deviation)
        predicted, expected = (away > NEAR).astype(np.int64), np.zeros(len(images), np.int64)
    return Named(build=predicted, floats=expected, cosines=cosines, decides=decides)


def check_accuracy(
    run: Run,
    reference: Run,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    min_agreement: float,
    max_top1_drop: float,
    features: bool = False,
    least_deviation: float = 0.0,
) -> AccuracyResult:
    """Hold a build against the float model that was quantized.

    Args:
        run: the build, image uint8 `[1, height, width, 3]` to logits `[1, classes]`.
        reference: the float model, the same way.
        images: uint8 `[n, height, width, 3]`.
        labels: class numbers `[n]`, or None.
        min_agreement: fraction of images on which both must decide the same.
        max_top1_drop: fraction of top-1 that may be lost (only with labels).
        features: the models have no classes; what they give is features of an image.
        least_deviation: what logits deviate by at least, whatever the images; see `verify.parity.deviation`.

    Raises:
        AccuracyError: no images, labels that do not fit, labels for a model without classes, or a limit broken.
    """
    named = name_classes(run, reference, images, features=features, least_deviation=least_deviation)
    return judge(named, labels, min_agreement=min_agreement, max_top1_drop=max_top1_drop)


def judge(named: Named, labels: np.ndarray | None, *, min_agreement: float, max_top1_drop: float) -> AccuracyResult:
    """Return `check_accuracy` of what the models have named already."""
    count = len(named.build)
    if labels is not None and len(labels) != count:
        raise AccuracyError(f"got {len(labels)} labels for {count} images; every image needs one")
    if labels is not None and named.decides != "class":
        what = "features" if named.decides == "features" else "one score"
        raise AccuracyError(f"a model with {what} has no top-1: give no labels")
    agrees = named.build == named.floats
    explained = np.zeros(count, bool) if named.explained is None else named.explained & ~agrees
    right, float_right = (None, None) if labels is None else (named.build == labels, named.floats == labels)
    result = AccuracyResult(
        agreement=fraction(agrees),
        explained=int(explained.sum()),
        cosine_mean=float(named.cosines.mean()),
        cosine_min=float(named.cosines.min()),
        top1=None if right is None else fraction(right),
        float_top1=None if float_right is None else fraction(float_right),
        drop=None if right is None or float_right is None else paired_drop(float_right, right),
        min_agreement=min_agreement,
        max_top1_drop=max_top1_drop,
        decides=named.decides,
    )
    _check_limits(result, fraction(agrees | explained))
    return result


def fraction(hits: np.ndarray) -> Fraction:
    """Return the share of true values in bool `[n]`, with the Wilson score interval."""
    n, k = len(hits), int(hits.sum())
    p = k / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    # The interval touches 0 and 1 exactly where all or none hit; rounding must not carry it past the value.
    return Fraction(
        hits=k, images=n, value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half))
    )


def paired_drop(before: np.ndarray, after: np.ndarray) -> Drop:
    """Return the loss from bool `[n]` to bool `[n]` on the same images: only images that changed carry information."""
    n = len(before)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    value = (lost - won) / n
    half = Z * math.sqrt(max(lost + won - (lost - won) ** 2 / n, 0.0)) / n
    return Drop(value=value, low=value - half, high=value + half, images=n)


def _check_limits(result: AccuracyResult, explained: Fraction) -> None:
    """`explained` is the agreement where the float model merges the same tokens: the rest is what quantization cost."""
    faults = []
    if explained.high < result.min_agreement:
        same = f" ({explained.value:.1%} with the same tokens merged)" if result.explained else ""
        faults.append(
            f"agreement with the float model that was quantized is {result.agreement}{same}, at least "
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
