"""What a build lost against the original model in float: first to compression, then to quantization.

The limit is the user's `--max-drop`, in points: of top-1 where there are labels, otherwise of agreement. It is broken
when even the near end of the 95 % interval lies beyond it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from edgevit.errors import AccuracyError
from edgevit.schema.claims import AccuracyResult, Fraction, OriginalResult
from edgevit.schema.manifest import AccuracyRow
from edgevit.verify.accuracy import Named, fraction, paired_drop


def compare_original(
    original: np.ndarray,
    named: Named,
    labels: np.ndarray | None = None,
    *,
    compressed: bool,
    max_drop: float | None = None,
) -> OriginalResult:
    """Hold a build against the original.

    Args:
        original: the class that the original names for every image, int64 `[n]`.
        named: what the build and the float model that was quantized name.
        labels: class numbers `[n]`, or None.
        compressed: whether that float model is another than the original.
        max_drop: points of top-1 that may be lost, without labels points of agreement.

    Raises:
        AccuracyError: more was lost.
    """
    right = None if labels is None else [classes == labels for classes in (original, named.floats, named.build)]
    result = OriginalResult(
        agreement=fraction(named.build == original),
        compressed_agreement=fraction(named.floats == original) if compressed else None,
        quantized_agreement=fraction(named.build == named.floats),
        top1=fraction(right[2]) if right else None,
        original_top1=fraction(right[0]) if right else None,
        drop=paired_drop(right[0], right[2]) if right else None,
        compression=paired_drop(right[0], right[1]) if right and compressed else None,
        quantization=paired_drop(right[1], right[2]) if right else None,
        max_drop=max_drop,
    )
    _check_drop(result)
    return result


def _check_drop(result: OriginalResult) -> None:
    limit, drop = result.max_drop, result.drop
    if limit is None:
        return
    near, what = (1 - result.agreement.high, "agreement") if drop is None else (drop.low, "top-1")
    if 100 * near <= limit + 1e-9:
        return
    of = f"; {result.compression.points} of it went to compression" if result.compression else ""
    raise AccuracyError(
        f"the build lost {100 * result.lost:.1f} points of {what} against the original model in float (at least "
        f"{100 * near:.1f}, n = {result.agreement.images}{of}), at most {limit:g} allowed by --max-drop. Prune and "
        "gate less, train after compressing (`edgevit compress`), calibrate on more images, or allow more"
    )


def accuracy_rows(result: AccuracyResult, against: OriginalResult | None) -> tuple[AccuracyRow, ...]:
    """Return the manifest's rows: the original, what was made of it in float, then the bundle.

    Args:
        result: the bundle against the float model that was quantized.
        against: the bundle against the original; None: it is not known on these images.
    """
    rows = []
    if against and against.original_top1:
        rows.append(_row("original", "top1", against.original_top1))
    compressed = against is None or against.compressed_agreement is not None
    if result.float_top1 and compressed:
        rows.append(_row("compressed", "top1", result.float_top1))
    if against and against.compressed_agreement:
        rows.append(_row("compressed", "agreement", against.compressed_agreement, "original"))
    if result.top1:
        rows.append(_row("bundle", "top1", result.top1))
    if against:
        rows.append(_row("bundle", "agreement", against.agreement, "original"))
    if compressed:
        rows.append(_row("bundle", "agreement", result.agreement))
    return tuple(rows)


def _row(
    model: Literal["original", "compressed", "bundle"],
    metric: Literal["top1", "agreement"],
    value: Fraction,
    against: Literal["original", "float"] = "float",
) -> AccuracyRow:
    return AccuracyRow(
        model=model,
        metric=metric,
        value=value.value,
        low=value.low,
        high=value.high,
        images=value.images,
        against=against,
    )
