"""From what was seen at a Linear's input to its quantizer: the range that is kept, then scale and zero point.

Range methods: `minmax` keeps everything; `percentile` clips the largest absolute values; `mse` clips where the mean
squared error of the quantizer is least (Nagel et al., A White Paper on Neural Network Quantization, section 3.1).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from edgevit.quantize.observe import BINS, TensorRange

Method = Literal["minmax", "percentile", "mse"]
Activations = Literal["uint8", "int8"]

# Below this a tensor is constant zero for every purpose; a scale must not be.
SMALLEST_SCALE = 1e-10
MSE_STEPS = 64
MSE_BINS = 4096


def kept_range(
    seen: TensorRange,
    method: Method,
    *,
    percentile: float = 99.999,
    activations: Activations = "uint8",
    without: Collection[int] = (),
) -> tuple[float, float]:
    """The range `(low, high)` that the quantizer of one Linear's input keeps; what lies outside is clipped.

    Args:
        seen: what was observed.
        method: how to choose.
        percentile: percentage of the absolute values that `percentile` keeps, 50..100.
        activations: type of the quantized input; `mse` depends on it.
        without: columns that leave the int8 product and need no room in the range. The histogram does not know
            columns: it is cut at the remaining columns' own extremes.
    """
    if not 50 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it must lie within 50..100")
    kept = np.setdiff1d(np.arange(len(seen.column_min)), np.array(list(without), dtype=np.int64))
    if not len(kept):
        return 0.0, 0.0
    low, high = float(min(seen.column_min[kept].min(), 0.0)), float(max(seen.column_max[kept].max(), 0.0))
    if method == "minmax" or not seen.limit:
        return low, high
    centres = (np.arange(BINS) + 0.5) * (2 * seen.limit / BINS) - seen.limit
    inside = (seen.counts > 0) & (centres >= low) & (centres <= high)
    values, counts = centres[inside], seen.counts[inside]
    if not len(values):
        return low, high
    if method == "percentile":
        order = np.argsort(np.abs(values))
        share = np.cumsum(counts[order]) / counts.sum()
        top = float(np.abs(values[order][np.searchsorted(share, percentile / 100 - 1e-12)]))
        return max(low, -top), min(high, top)
    return _least_error(values, counts, low, high, activations)


def _least_error(
    values: np.ndarray, counts: np.ndarray, low: float, high: float, activations: Activations
) -> tuple[float, float]:
    """Shrink both ends in turn, each to where the squared error of rounding and clipping is least."""
    values, counts = _coarser(values, counts)

    def error(low: float, high: float) -> float:
        scale, zero = quantizer(low, high, activations)
        return float((counts * (fake_quantize(values, scale, zero, activations) - values) ** 2).sum())

    shares = np.linspace(1.0, 1.0 / MSE_STEPS, MSE_STEPS)
    best_low, best_high = low, high
    for _ in range(2):
        best_high = min((high * s for s in shares), key=lambda h: error(best_low, h))
        best_low = min((low * s for s in shares), key=lambda b: error(b, best_high))
    return best_low, best_high


def _coarser(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring bins until there are at most MSE_BINS, each at its mean value."""
    group = -(-len(values) // MSE_BINS)
    starts = np.arange(0, len(values), group)
    merged = np.add.reduceat(counts, starts)
    return np.add.reduceat(values * counts, starts) / merged, merged


def quantizer(low: float, high: float, activations: Activations) -> tuple[float, int]:
    """Scale and zero point of a range: uint8 asymmetric, int8 symmetric; zero is exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    if activations == "int8":
        return _scale(max(-low, high) / 127), 0
    scale = _scale((high - low) / 255)
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _scale(value: float) -> float:
    # The lowered graph stores float32: rounding here keeps the plan and the graph equal.
    return float(np.float32(max(value, SMALLEST_SCALE)))


def fake_quantize(x: np.ndarray, scale: float, zero_point: int, activations: Activations) -> np.ndarray:
    """`x` as the int8 product sees it: rounded to the quantizer's steps and clipped to its range."""
    low, high = (0, 255) if activations == "uint8" else (-128, 127)
    seen: np.ndarray = (np.clip(np.rint(x / scale) + zero_point, low, high) - zero_point) * scale
    return seen
