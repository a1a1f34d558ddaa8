from __future__ import annotations

import statistics

import numpy as np
import pytest

from edgevit.measure.percentiles import latency, percentile


@pytest.mark.parametrize(("fraction", "least"), [(0.90, 64), (0.95, 130), (0.99, 662)])
def test_a_percentile_is_claimed_from_the_first_n_that_supports_it(fraction: float, least: int) -> None:
    assert percentile([1.0] * (least - 1), fraction) is None
    assert percentile(list(range(least)), fraction) == least - 1


def test_with_more_runs_the_slowest_are_dropped() -> None:
    samples = list(range(1000))
    # n = 1000 supports t = 2 for p99: one run is dropped.
    assert percentile(samples, 0.99) == 998
    p90 = percentile(samples, 0.90)
    assert p90 is not None and 900 < p90 < 930


def test_the_estimate_is_above_the_true_percentile_99_times_in_100() -> None:
    rng = np.random.default_rng(0)
    true = -np.log(0.1)  # p90 of an exponential
    low = sum(percentile(list(rng.exponential(size=100)), 0.90) < true for _ in range(1000))
    assert low <= 20


def test_latency_summarises_and_keeps_the_samples() -> None:
    samples = [3.0, 1.0, 2.00004]
    summary = latency(samples)
    assert (summary.runs, summary.min_ms, summary.max_ms) == (3, 1.0, 3.0)
    assert summary.median_ms == statistics.median(samples)
    assert summary.mean_ms == pytest.approx(2.0, abs=1e-4)
    assert (summary.p90_ms, summary.p95_ms, summary.p99_ms) == (None, None, None)
    assert summary.samples_ms == (3.0, 1.0, 2.0)
