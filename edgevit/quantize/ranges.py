"""From what was seen at a Linear's input to its quantizer: the range that is kept, then scale and zero point.

Range methods: `minmax` keeps everything; `percentile` clips the largest absolute values; `mse` clips where the squared
error of the Linear's output is least (Nagel et al., A White Paper on Neural Network Quantization, section 3.1, with
the output instead of the input, and every row weighed by its own size: a few huge rows must not speak for all).
Shapes: n sampled rows, in columns, out columns.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from edgevit.quantize.observe import BINS, TensorRange

Method = Literal["minmax", "percentile", "mse"]
Activations = Literal["uint8", "int8"]

_SHIFT: dict[Activations, int] = {"uint8": 0, "int8": 128}
# Below this a tensor is constant zero for every purpose; a scale must not be.
SMALLEST_SCALE = 1e-10
# Fractions of the largest absolute value that `mse` tries as a limit.
CLIPS: tuple[float, ...] = tuple(float(c) for c in np.geomspace(1.0, 0.25, 13))
# Clipping error grows steeply once it dominates: past this factor over the least error seen, tighter is only worse.
GIVE_UP = 1.5


def kept_range(
    seen: TensorRange,
    method: Method,
    weight: np.ndarray,
    *,
    percentile: float = 99.999,
    activations: Activations = "uint8",
    without: Collection[int] = (),
    sizes: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the range `(low, high)` that the quantizer of one Linear's input keeps; what lies outside is clipped.

    Args:
        seen: what was observed.
        method: how to choose.
        weight: the Linear's, `[in, out]`.
        percentile: percentage of the absolute values that `percentile` keeps, 50..100.
        activations: type of the quantized input.
        without: columns that leave the int8 product and need no room in the range.
        sizes: `output_sizes`, where they are known already.
    """
    if not 50 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it must lie within 50..100")
    kept = np.setdiff1d(np.arange(len(seen.column_min)), np.array(list(without), dtype=np.int64))
    if not len(kept):
        return 0.0, 0.0
    low, high = float(min(seen.column_min[kept].min(), 0.0)), float(max(seen.column_max[kept].max(), 0.0))
    if method == "minmax":
        return low, high
    if method == "percentile":
        top = _percentile(seen, percentile)
        return max(low, -top), min(high, top)
    best, kept_error = (low, high), np.inf
    sizes = output_sizes(seen, weight) if sizes is None else sizes
    for clip in CLIPS:
        limit = clip * max(-low, high)
        tried = max(low, -limit), min(high, limit)
        error = output_error(seen, weight, *quantizer(*tried, activations), activations, without, sizes)
        if error < kept_error:
            best, kept_error = tried, error
        elif error > GIVE_UP * kept_error:
            break
    return best


def _percentile(seen: TensorRange, percentile: float) -> float:
    """Return the absolute value below which `percentile` of all values lie; columns are not told apart."""
    if seen.counts is None:
        raise ValueError(f"the range method percentile needs a histogram of {seen.name}; observe with one")
    magnitudes = seen.counts[BINS // 2 :] + seen.counts[BINS // 2 - 1 :: -1]
    share = np.cumsum(magnitudes) / max(magnitudes.sum(), 1)
    index = int(np.searchsorted(share, percentile / 100 - 1e-12))
    return (index + 1) * 2 * seen.limit / BINS


def output_error(
    seen: TensorRange,
    weight: np.ndarray,
    scale: float,
    zero_point: int,
    activations: Activations,
    without: Collection[int] = (),
    sizes: np.ndarray | None = None,
) -> float:
    """How far a quantized input moves the Linear's output: squared error over squared size, mean over sampled rows.

    1 is noise as large as the output. Columns of `without` are exact; `sizes` are as for `kept_range`.
    """
    error = fake_quantize(seen.sample, scale, zero_point, activations) - seen.sample
    error[:, list(without)] = 0
    moved, size = ((error @ weight) ** 2).sum(axis=1), output_sizes(seen, weight) if sizes is None else sizes
    return float((moved[size > 0] / size[size > 0]).mean()) if (size > 0).any() else 0.0


def output_sizes(seen: TensorRange, weight: np.ndarray) -> np.ndarray:
    """Return the squared length of the Linear's output for every sampled row, `[n]`; no quantizer changes it."""
    sizes: np.ndarray = ((seen.sample @ weight) ** 2).sum(axis=1)
    return sizes


def quantizer(low: float, high: float, activations: Activations) -> tuple[float, int]:
    """Scale and zero point of a range, asymmetric: 255 steps, zero exactly representable.

    int8 is uint8 shifted by 128: a symmetric range would spend half its steps on the side that GELU leaves empty, and
    a zero point of the input costs nothing at run time, it ends in the bias.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _scale((high - low) / 255)
    return scale, int(np.clip(np.rint(-low / scale), 0, 255)) - _SHIFT[activations]


def _scale(value: float) -> float:
    # The lowered graph stores float32: rounding here keeps the plan and the graph equal.
    return float(np.float32(max(value, SMALLEST_SCALE)))


def fake_quantize(x: np.ndarray, scale: float, zero_point: int, activations: Activations) -> np.ndarray:
    """Return `x` as the int8 product sees it: rounded to the quantizer's steps and clipped to its range."""
    low = -_SHIFT[activations]
    steps = np.clip(np.rint(x / np.float32(scale)) + np.float32(zero_point), low, low + 255)
    seen: np.ndarray = (steps - np.float32(zero_point)) * np.float32(scale)
    return seen
