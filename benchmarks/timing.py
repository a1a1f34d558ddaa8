"""Fair times of several models on a shared machine: interleaved runs, process CPU time, medians, paired ratios.

Absolute times drift with what else the machine does; two runs made one after the other drift together. So every round
runs every candidate once, in an order drawn anew, on the same image, and a ratio is the median over rounds of the
quotient within the round. Its interval is that of a median: order statistics, no distribution assumed.
"""

from __future__ import annotations

import fcntl
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WARMUP_ROUNDS = 5
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of every round, in order: process CPU time (all threads) and wall time."""

    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.cpu_ms)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median of paired quotients of CPU times, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interleave(
    candidates: Mapping[str, Callable[[int], object]], images: int, rounds: int, *, seed: int = 0
) -> dict[str, Times]:
    """Time every candidate once per round; a candidate runs image number `round % images`, which it was given before.

    The first rounds warm up and are not counted. The order within a round is drawn, so that nobody always follows
    the same neighbour and finds its caches.
    """
    rng = np.random.default_rng(seed)
    names = list(candidates)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-WARMUP_ROUNDS, rounds):
        for name in (names[i] for i in rng.permutation(len(names))):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            candidates[name](index % images)
            spent, passed = time.process_time() - cpu_start, time.perf_counter() - wall_start
            if index >= 0:
                cpu[name].append(1000 * spent)
                wall[name].append(1000 * passed)
    return {name: Times(cpu_ms=tuple(cpu[name]), wall_ms=tuple(wall[name])) for name in names}


def ratio(times: Times, base: Times) -> Ratio:
    """How long `times` took in units of `base`, from rounds that both were timed in."""
    return median_interval([a / b for a, b in zip(times.cpu_ms, base.cpu_ms, strict=True)])


def median_interval(values: Sequence[float]) -> Ratio:
    """Median with the narrowest pair of order statistics that holds the true one with 95 % confidence."""
    ordered, n = sorted(values), len(values)
    below, rank = 0.5**n, 0
    while rank < (n - 1) // 2 and 2 * (below + math.comb(n, rank + 1) * 0.5**n) <= 1 - CONFIDENCE:
        rank += 1
        below += math.comb(n, rank) * 0.5**n
    return Ratio(value=statistics.median(ordered), low=ordered[rank], high=ordered[n - 1 - rank])


@contextmanager
def take_turn(lock: Path | None) -> Iterator[None]:
    """Hold a lock file while timing, so that benchmarks on one machine take turns."""
    with lock.open("a") if lock else nullcontext() as file:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
