"""Watch the float model on calibration images: what flows into every Linear.

The model itself is given as a callable, so that nothing here knows a runtime. Statistics are kept while the images
stream by: memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgevit.errors import ImagesError, ProgramError
from edgevit.program.spec import ProgramSpec
from edgevit.util.threads import in_order

TAP = "tap:"
BINS = 65536
# Every image gives its first row (class token) and this many others to the sample, and every n-th row to the histogram
# and the moments.
SAMPLED_ROWS = 3
MAX_SAMPLED_ROWS = 512
HISTOGRAM_STRIDE = 4
# Rows that wait until they are multiplied at once: a product of few rows costs little beside adding it up.
GATHERED_ROWS = 256

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """What was seen at the input `[rows, in]` of one Linear.

    Attributes:
        name: the Linear.
        column_min: smallest value per input column, `[in]`, over all images and rows.
        column_max: largest value per input column, `[in]`.
        counts: histogram of the values, int64 `[BINS]`, equal bins over `-limit..limit`, of every 4th row; None if
            nobody asked for it.
        limit: half the histogram's width, a power of two.
        sample: some of the rows, float32 `[n, in]`, n <= 512: the class token and a few others of every image.
        moments: mean of `x[i] * x[j]` over the rows of the histogram, float32 `[in, in]`.
        rows: how many these are.
    """

    name: str
    column_min: np.ndarray
    column_max: np.ndarray
    counts: np.ndarray | None
    limit: float
    sample: np.ndarray
    moments: np.ndarray
    rows: int

    @property
    def column_abs_max(self) -> np.ndarray:
        largest: np.ndarray = np.maximum(-self.column_min, self.column_max)
        return largest


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The TensorRange of every Linear whose input is float, in graph order, over `images` images."""

    tensors: tuple[TensorRange, ...]
    images: int

    def tensor(self, name: str) -> TensorRange | None:
        return next((t for t in self.tensors if t.name == name), None)


def observe(
    spec: ProgramSpec,
    runs: Sequence[Run],
    images: Iterable[np.ndarray],
    *,
    histogram: bool = True,
    told: Callable[[Mapping[str, np.ndarray]], object] = lambda _: None,
    threads: int | None = None,
) -> Ranges:
    """Run every image through the float model and keep what flows into every Linear.

    Images run in several threads at once, and what flowed is taken in their order: what is kept does not depend on the
    number of threads.

    Args:
        spec: the Program that runs.
        runs: each takes an image, uint8 `[1, height, width, 3]`, and returns the outputs of the lowered graph with
            taps: `tap:<linear>` float32 `[rows, in]` and `gates` uint8 `[branches]`. A gated Program is given two:
            its gates as calibrated, and all open, so that the ranges hold on every path. A branch's taps count only
            where its gate is open.
        images: calibration images.
        histogram: whether to count values; only the range method `percentile` needs it.
        told: called with the outputs of the first run of every image, in order.
        threads: how many images run at once; None: one per core.

    Raises:
        ImagesError: no image was given.
        ProgramError: the float model gives values that are not finite.
    """
    watchers: dict[str, _Watcher] = {}
    index = {branch.name: i for i, branch in enumerate(spec.branches)}
    count = 0
    for seen in in_order(lambda image: [run(image) for run in runs], images, threads):
        told(seen[0])
        for outputs in seen:
            for key, value in outputs.items():
                name = key.removeprefix(TAP)
                branch = index.get(name.partition(".")[0])
                if name != key and (branch is None or outputs["gates"][branch]):
                    if name not in watchers:
                        watchers[name] = _Watcher(name, histogram)
                    watchers[name].add(value)
        count += 1
    if not count:
        raise ImagesError("no calibration image was given; int8 ranges need at least one, and 100 or more are better")
    return Ranges(tensors=tuple(w.range() for w in watchers.values()), images=count)


@lru_cache(maxsize=64)
def _sampled(index: int, rows: int) -> np.ndarray:
    """Return which rows of an image are taken, the same of every tensor with as many."""
    return np.unique([0, *np.random.default_rng(index).integers(0, rows, SAMPLED_ROWS)])


class _Watcher:
    """Running statistics of one tensor."""

    def __init__(self, name: str, histogram: bool) -> None:
        self.name, self.histogram = name, histogram
        self.low: np.ndarray | None = None
        self.high: np.ndarray | None = None
        self.limit = 0.0
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.products: np.ndarray | None = None
        self.multiplied = 0
        self.waiting: list[np.ndarray] = []
        self.rows: list[np.ndarray] = []
        self.sampled = self.seen = 0

    def add(self, x: np.ndarray) -> None:
        """Take one image's rows, `[rows, in]`."""
        low, high = x.min(axis=0), x.max(axis=0)
        top = float(np.abs([low.min(), high.max()]).max())
        if not np.isfinite(top):
            raise ProgramError(
                f"the float model's input of {self.name} is not finite on calibration image {self.seen + 1}; "
                "check that the weights fit the model"
            )
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        some = x[self.seen % HISTOGRAM_STRIDE :: HISTOGRAM_STRIDE] if len(x) > HISTOGRAM_STRIDE else x
        if self.histogram:
            self._grow(top)
            self._count(some)
        self.waiting.append(some.copy())
        if sum(map(len, self.waiting)) >= GATHERED_ROWS:
            self._multiply()
        self._sample(x)
        self.seen += 1

    def _grow(self, top: float) -> None:
        """Widen the histogram by doubling until `top` fits: pairs of bins merge, no count is moved across a border."""
        if not self.limit and top:
            self.limit = 2.0 ** np.ceil(np.log2(top))
        while self.limit and top > self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(merged, BINS // 4)
            self.limit *= 2.0

    def _count(self, x: np.ndarray) -> None:
        if not self.limit:
            return
        bins = (x.ravel() * np.float32(BINS / 2 / self.limit)).astype(np.int32)
        # The cast rounds towards zero: negative values belong one bin lower.
        bins += BINS // 2 - (x.ravel() < 0)
        self.counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def _multiply(self) -> None:
        rows = np.concatenate(self.waiting)
        self.waiting.clear()
        if self.products is None:
            self.products = rows.T @ rows
        else:
            self.products += rows.T @ rows
        self.multiplied += len(rows)

    def _sample(self, x: np.ndarray) -> None:
        room = MAX_SAMPLED_ROWS - self.sampled
        if room > 0:
            self.rows.append(x[_sampled(self.seen, len(x))][:room].copy())
            self.sampled += len(self.rows[-1])

    def range(self) -> TensorRange:
        if self.waiting:
            self._multiply()
        assert self.low is not None and self.high is not None and self.products is not None
        return TensorRange(
            name=self.name,
            column_min=self.low,
            column_max=self.high,
            counts=self.counts if self.histogram else None,
            limit=self.limit,
            sample=np.concatenate(self.rows),
            moments=np.divide(self.products, np.float32(self.multiplied), out=self.products),
            rows=self.multiplied,
        )
