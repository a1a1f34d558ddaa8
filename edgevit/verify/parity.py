"""Same function: a build against its reference on all-open, all-skipped, calibrated and drawn paths.

Gates are compared first: where they differ, two models compute different functions from there on. A gate may differ
only when its reference logit lies within a stated margin of its limit, and only the first such gate of a run is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgevit.errors import ParityError

Reference = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]
ALL_OPEN, ALL_SKIPPED = 1e9, -1e9
DRAWN = 9
PROBE = 64.0  # opens every gate and still leaves its logit 17 bits


class Runner(Protocol):
    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a build may be from its reference.

    Attributes:
        max_error: largest absolute logit difference, as a fraction of the standard deviation of the reference's logits.
        min_cosine: smallest cosine between the logits of one image.
        gate_margin: a gate whose reference logit is this near to its limit may differ, as a multiple of the length of
            its weights: rounding moves a normalised row by a share of itself, and its logit in proportion to them.
        max_flips: fraction of all runs in which a gate may differ in this way.
    """

    max_error: float
    min_cosine: float
    gate_margin: float
    max_flips: float


# float32 sums in another order.
FLOAT = Tolerance(max_error=1e-3, min_cosine=0.99999, gate_margin=1e-3, max_flips=0.05)
# int8 against the same rounded values in float arithmetic: equal to 1e-6 until an input tips over to the next integer;
# 24 branches of ViT-Ti make up to 0.76 of that (cosine 0.984).
QUANTIZED = Tolerance(max_error=1.5, min_cosine=0.95, gate_margin=0.15, max_flips=0.3)
# int8 against float on single images (ViT-Ti: 0.72, 0.974, 0.07, 0.08); what it costs in accuracy is for
# verify/accuracy.py to say.
INT8 = Tolerance(max_error=2.0, min_cosine=0.9, gate_margin=0.3, max_flips=0.3)


@dataclass(frozen=True, kw_only=True)
class PathParity:
    """One path over all images. Errors are over the `compared` images, those that took the reference's path.

    `error` is relative to the standard deviation of the reference's logits, `max_abs_error` in logits. `flips` counts
    images on which a gate differed within the margin; `open` is the mean number of branches that ran in the reference.
    """

    path: str
    effort: float
    images: int
    compared: int
    open: float
    flips: int
    max_abs_error: float
    error: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Every path, and the tolerance they held."""

    paths: tuple[PathParity, ...]
    tolerance: Tolerance

    @property
    def summary(self) -> str:
        error, cosine = max(p.error for p in self.paths), min(p.cosine for p in self.paths)
        return f"{len(self.paths)} paths, largest error {error:.2g} of the logits' deviation, least cosine {cosine:.5f}"


def check_parity(
    reference: Reference,
    runner: Runner,
    images: np.ndarray,
    tolerance: Tolerance,
    *,
    efforts: Mapping[str, float] | None = None,
    lengths: np.ndarray | None = None,
) -> ParityResult:
    """Hold a runner against its reference.

    Args:
        reference: (image, effort) to (logits `[1, classes]`, gates `[branches]`, margins `[branches]`).
        runner: the build.
        images: uint8 `[n, height, width, 3]`.
        tolerance: `FLOAT` for the same arithmetic, `INT8` for int8 against float, `QUANTIZED` for int8 against the
            quantized graph in float arithmetic.
        efforts: path name to effort; default: see `paths`.
        lengths: of every branch's gate's weights, float `[branches]`; default: 1.

    Raises:
        ParityError: names the path, what differed, by how much, and what is allowed.
    """
    if not len(images):
        raise ParityError("parity was asked for on 0 images; give at least one")
    efforts = paths(reference, images) if efforts is None else efforts
    results = tuple(
        _path(name, effort, reference, runner, images, tolerance, lengths) for name, effort in efforts.items()
    )
    flips, runs = sum(p.flips for p in results), sum(p.images for p in results)
    if flips > tolerance.max_flips * runs:
        raise ParityError(
            f"in {flips} of {runs} runs a gate differs from the reference, each within {tolerance.gate_margin} of its "
            f"limit in lengths of its weights; allowed: {tolerance.max_flips:.0%} of the runs"
        )
    return ParityResult(paths=results, tolerance=tolerance)


def drawn_paths(gates: int) -> int:
    """How many paths lie between the first gate's opening and the last one's and are worth drawing; none for one gate.

    A drawn effort between two images' limits of a single gate shows no new path, only rounding near a limit.
    """
    return min(DRAWN, 2 * max(gates - 1, 0))


def paths(reference: Reference, images: np.ndarray) -> dict[str, float]:
    """Efforts of the paths to compare: as calibrated, all open, all skipped, and drawn ones in between.

    Drawn efforts are spread evenly from where the first gate opens to where the last one does, in the reference, so a
    wrong limit shows on one of them. Without gates there is one path.
    """
    at_open = np.concatenate([reference(image[None], PROBE)[2] - PROBE for image in images])
    at_skipped = np.concatenate([reference(image[None], -PROBE)[2] + PROBE for image in images])
    if not np.isfinite(at_open).any():
        return {"real": 0.0}
    first, last = -at_skipped[np.isfinite(at_skipped)].max(), -at_open.min()
    drawn_count = drawn_paths(int(np.isfinite(reference(images[:1], PROBE)[2]).sum()))
    steps = np.linspace(first, last, drawn_count + 2)[1:-1]
    drawn = {f"drawn_{index + 1}": float(effort) for index, effort in enumerate(steps)}
    return {"real": 0.0, "all_open": ALL_OPEN, "all_skipped": ALL_SKIPPED, **drawn}


def _path(
    name: str,
    effort: float,
    reference: Reference,
    runner: Runner,
    images: np.ndarray,
    tolerance: Tolerance,
    lengths: np.ndarray | None,
) -> PathParity:
    errors, relative, cosines, opened, flips = [0.0], [0.0], [1.0], [], 0
    for index, image in enumerate(images):
        expected, gates, margins = reference(image[None], effort)
        logits, got = runner.run(image[None], effort)
        where = f"path {name!r} (effort {effort:g}), image {index}"
        near = tolerance.gate_margin * (np.ones(margins.shape) if lengths is None else lengths)
        flipped = _first_flip(gates, got, margins, near, where)
        opened.append(int(gates.sum()))
        if flipped:
            flips += 1
            continue
        error, part, cosine = _distance(expected, logits, tolerance, where)
        errors.append(error)
        relative.append(part)
        cosines.append(cosine)
    return PathParity(
        path=name,
        effort=effort,
        images=len(images),
        compared=len(errors) - 1,
        open=float(np.mean(opened)),
        flips=flips,
        max_abs_error=max(errors),
        error=max(relative),
        cosine=min(cosines),
    )


def _first_flip(expected: np.ndarray, got: np.ndarray, margins: np.ndarray, near: np.ndarray, where: str) -> bool:
    if expected.shape != got.shape:
        raise ParityError(f"{where}: gates have shape {list(got.shape)}, expected {list(expected.shape)}")
    different = np.flatnonzero(expected != got)
    if not different.size:
        return False
    first = int(different[0])
    if not abs(margins[first]) <= near[first]:
        raise ParityError(
            f"{where}: gate {first} is {'open' if got[first] else 'closed'}, the reference has it "
            f"{'open' if expected[first] else 'closed'} with its logit {margins[first]:+.4g} from the limit; "
            f"only gates within {near[first]:.3g} of it may differ"
        )
    return True


def _distance(expected: np.ndarray, got: np.ndarray, tolerance: Tolerance, where: str) -> tuple[float, float, float]:
    if expected.shape != got.shape or not np.isfinite(got).all():
        raise ParityError(f"{where}: logits {list(got.shape)} are not finite values of shape {list(expected.shape)}")
    a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    error = float(np.abs(a - b).max())
    relative = error / max(float(a.std()), 1e-12)
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    if relative > tolerance.max_error or cosine < tolerance.min_cosine:
        raise ParityError(
            f"{where}: logits differ by up to {error:.4g}, {relative:.4g} of their deviation (allowed: "
            f"{tolerance.max_error}), cosine {cosine:.6f} (at least {tolerance.min_cosine})"
        )
    return error, relative, cosine
