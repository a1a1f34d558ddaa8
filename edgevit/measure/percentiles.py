"""Statistics of single-run times: medians, and a percentile only where the number of runs supports it.

A percentile is MLPerf's early-stopping estimate (inference rules, single stream). With n runs the largest t is found
for which having at most t runs above the true percentile is no likelier than 1 %; the t - 1 slowest runs are dropped
and the slowest of the rest is quoted, so the figure errs upwards. It needs 64 runs for p90, 130 for p95, 662 for p99.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from edgevit.schema.measurement import Latency

CONFIDENCE = 0.99


def latency(samples_ms: Sequence[float]) -> Latency:
    """Return a summary of the times of single runs, in milliseconds; at least one."""
    return Latency(
        runs=len(samples_ms),
        median_ms=statistics.median(samples_ms),
        mean_ms=statistics.fmean(samples_ms),
        min_ms=min(samples_ms),
        max_ms=max(samples_ms),
        p90_ms=percentile(samples_ms, 0.90),
        p95_ms=percentile(samples_ms, 0.95),
        p99_ms=percentile(samples_ms, 0.99),
        samples_ms=tuple(round(sample, 4) for sample in samples_ms),
    )


def percentile(samples: Sequence[float], fraction: float) -> float | None:
    """Return upper estimate of a percentile with 99 % confidence, or None if n is too small to claim it."""
    slower = _supported(len(samples), fraction)
    return sorted(samples)[-slower] if slower else None


def _supported(n: int, fraction: float) -> int:
    """Return the largest t with P(Binomial(n, 1 - fraction) <= t) <= 1 - confidence; 0 if there is none."""
    t, cumulative = 0, _binomial(n, 0, 1 - fraction)
    while t < n and cumulative + (step := _binomial(n, t + 1, 1 - fraction)) <= 1 - CONFIDENCE:
        t, cumulative = t + 1, cumulative + step
    return t


def _binomial(n: int, k: int, p: float) -> float:
    if k > n:
        return 0.0
    logarithm = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(logarithm + k * math.log(p) + (n - k) * math.log(1 - p))
