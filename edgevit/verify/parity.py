"""Same function: a build against its reference on all-open, all-skipped, calibrated and drawn paths.

Gates are compared first: where they differ, two models compute different functions from there on. A gate may differ
only when its reference logit lies within a stated margin of its limit, and only the first such gate of a run is judged.
Where tokens merge, a build that tells its pairs is compared with the reference under the same pairs, and every choice
of its own is judged by what it gives away (`verify.pairs`); one that does not tell is compared as it is.

Logits are compared in units of their own deviation (`deviation`), which no number of classes and no single image makes
vanish. Between few logits an angle says nothing: two classes that lie close together point anywhere, one class up or
down. There the cosine is taken over all images at once, from each class's mean on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgevit.errors import ParityError
from edgevit.program.tokens import MERGE_EFFORT
from edgevit.schema.claims import ParityResult, PathParity, Tolerance
from edgevit.schema.points import effort_text
from edgevit.verify.merges import Build, Merged, Reference, Runner, judge_merges, points_of
from edgevit.verify.pairs import Choices

ALL_OPEN, ALL_SKIPPED = 1e9, -1e9
DRAWN = 9
TOKEN_PATHS = 3
PROBE = 64.0  # opens every gate and still leaves its logit 17 bits
MANY_CLASSES = 10  # from here on the logits of one image have a direction
FLAT = 1e-3  # of the logits' size: a deviation below this is float32's rounding as soon as the weights' is
LIMIT_ROUNDING = 1e-6  # of a gate's logit, where its weights are 0


# float32 sums in another order.
FLOAT = Tolerance(
    max_error=1e-3,
    min_cosine=0.99999,
    gate_margin=1e-3,
    max_flips=0.05,
    token_margin=1e-4,
    max_moved=0.1,
    pair_margin=1e-4,
    max_other_pairs=0.01,
)
# int8 against the same rounded values in float arithmetic: equal to 1e-6 until an input tips over to the next integer;
# 24 branches of ViT-Ti make up to 0.76 of that (cosine 0.984). Merged to 0.64 of its MACs, ViT-Ti has 5 to 11 % other
# pairs, which give away up to 0.11; without the row that its points rank pairs by, 57 % and 0.74. A DeiT-Ti that merges
# 60 tokens twice has 9 % other pairs; with attention of 7 bits one of 960 pairs gives away 0.43.
QUANTIZED = Tolerance(
    max_error=1.5,
    min_cosine=0.95,
    gate_margin=0.15,
    max_flips=0.3,
    token_margin=0.03,
    max_moved=0.5,
    pair_margin=0.3,
    max_other_pairs=0.25,
    max_far_pairs=0.01,
)
# int8 against float on single images (ViT-Ti: 0.72, 0.974, 0.07, 0.08); what it costs in accuracy is for
# verify/accuracy.py to say. Numbers of tokens move in 8 to 21 % of the runs of a DeiT-Ti, by at most 0.0063.
INT8 = Tolerance(
    max_error=2.0,
    min_cosine=0.9,
    gate_margin=0.3,
    max_flips=0.3,
    token_margin=0.05,
    max_moved=0.5,
    pair_margin=0.5,
    max_other_pairs=0.3,
    max_far_pairs=0.01,
)


def check_parity(
    reference: Reference,
    runner: Runner,
    images: np.ndarray,
    tolerance: Tolerance,
    *,
    efforts: Mapping[str, float] | None = None,
    lengths: np.ndarray | None = None,
    least_deviation: float = 0.0,
    patches: int = 0,
    merged: Merged | None = None,
) -> ParityResult:
    """Hold a runner against its reference.

    Args:
        reference: (image, effort) to (logits `[1, classes]`, gates `[branches]`, margins `[branches]`) and, where
            tokens merge, the points (`verify.tokens.PointMargins`); given pairs as well, it merges these.
        runner: the build.
        images: uint8 `[n, height, width, 3]`.
        tolerance: `FLOAT` for the same arithmetic, `INT8` for int8 against float, `QUANTIZED` for int8 against the
            quantized graph in float arithmetic.
        efforts: path name to effort; default: see `paths`.
        lengths: of every branch's gate's weights, float `[branches]`; default: 1.
        least_deviation: what the logits deviate by at least, whatever the images; see `deviation`.
        patches: patch tokens of the model before any merge.
        merged: the build once more, telling the pairs that it merges; what it answers counts only where that is bit for
            bit what `runner` does (None: nobody tells).

    Raises:
        ParityError: names the path, what differed, by how much, and what is allowed.
    """
    if not len(images):
        raise ParityError("parity was asked for on 0 images; give at least one")
    efforts = paths(reference, images) if efforts is None else efforts
    allowed = _Allowed(tolerance=tolerance, lengths=lengths, least_deviation=least_deviation, patches=patches)
    build = Build(runner=runner, merged=merged)
    results = tuple(_path(name, effort, reference, build, images, allowed) for name, effort in efforts.items())
    flips, runs = sum(p.flips for p in results), sum(p.images for p in results)
    if flips > tolerance.max_flips * runs:
        raise ParityError(
            f"in {flips} of {runs} runs a gate differs from the reference, each within {tolerance.gate_margin} of its "
            f"limit in lengths of its weights; allowed: {tolerance.max_flips:.0%} of the runs"
        )
    moved = sum(p.moved for p in results)
    if moved > tolerance.max_moved * runs:
        raise ParityError(
            f"in {moved} of {runs} runs the number of tokens differs from the reference, each within "
            f"{tolerance.token_margin} of a threshold; allowed: {tolerance.max_moved:.0%} of the runs"
        )
    _check_pairs(results, tolerance)
    return ParityResult(paths=results, tolerance=tolerance)


def _check_pairs(results: Sequence[PathParity], tolerance: Tolerance) -> None:
    pairs, other = sum(p.pairs for p in results), sum(p.other_pairs for p in results)
    far, worst = sum(p.far_pairs for p in results), max(results, key=lambda p: p.pair_loss)
    if far > tolerance.max_far_pairs * pairs:
        raise ParityError(
            f"{far} of {pairs} pairs of tokens that were merged give away a cosine of up to {worst.pair_loss:.4g} "
            f"(path {worst.path!r}) against the reference's own; allowed: {tolerance.max_far_pairs:.0%} of the pairs "
            f"farther than {tolerance.pair_margin:.3g}"
        )
    if other > tolerance.max_other_pairs * pairs:
        raise ParityError(
            f"{other} of {pairs} pairs of tokens that were merged are not those of the reference; allowed: "
            f"{tolerance.max_other_pairs:.0%} of the pairs"
        )


def drawn_paths(gates: int) -> int:
    """How many paths lie between the first gate's opening and the last one's and are worth drawing; none for one gate.

    A drawn effort between two images' limits of a single gate shows no new path, only rounding near a limit.
    """
    return min(DRAWN, 2 * max(gates - 1, 0))


def paths(reference: Reference, images: np.ndarray) -> dict[str, float]:
    """Return efforts of the paths to compare: as calibrated, all open, all skipped, and drawn ones in between.

    Drawn efforts are spread evenly from where the first gate opens to where the last one does, in the reference, so a
    wrong limit shows on one of them; or over the efforts at which the numbers of tokens change. Without either there is
    one path.
    """
    at_open = np.concatenate([reference(image[None], PROBE)[2] - PROBE for image in images])
    at_skipped = np.concatenate([reference(image[None], -PROBE)[2] + PROBE for image in images])
    if np.isfinite(at_open).any():
        first, last = -at_skipped[np.isfinite(at_skipped)].max(), -at_open.min()
        count = drawn_paths(int(np.isfinite(reference(images[:1], PROBE)[2]).sum()))
    else:
        margins = [point.margins for image in images for point in points_of(reference(image[None], 0.0))]
        changes = np.concatenate([*margins, np.zeros(0)]) / MERGE_EFFORT
        changes = changes[np.isfinite(changes)]
        if not changes.size:
            return {"real": 0.0}
        first, last, count = changes.min(), changes.max(), TOKEN_PATHS
    steps = np.linspace(first, last, count + 2)[1:-1]
    drawn = {f"drawn_{index + 1}": float(effort) for index, effort in enumerate(steps)}
    return {"real": 0.0, "all_open": ALL_OPEN, "all_skipped": ALL_SKIPPED, **drawn}


def deviation(logits: np.ndarray, least: float = 0.0) -> float:
    """Return what differences between logits are measured in: how far the logits of a model lie apart.

    That is their standard deviation over the classes of an image (the least of all images), or over the images (each
    class from its own mean), or `least`, whichever is largest. The first vanishes for one class, and for two that lie
    close together; the second for one image and on a path that does not look at the image.

    Args:
        logits: float `[images, classes]`.
        least: what no choice of images can take away, known from the weights; 0 = not known.
    """
    values = logits.astype(np.float64)
    return max(float(values.std(axis=1).min()), deviation_over_images(values, least))


def deviation_over_images(logits: np.ndarray, least: float = 0.0) -> float:
    """How far the logits `[images, classes]` of images lie apart, each class from its own mean; at least `least`."""
    values = logits.astype(np.float64)
    apart = float(np.sqrt(values.var(axis=0, ddof=1).mean())) if len(values) > 1 else 0.0
    return max(apart, _flat(values, least))


def centred_cosine(expected: np.ndarray, got: np.ndarray, mean: np.ndarray, least: float = 0.0) -> float:
    """Return the cosine between logits `[images, classes]`, all at once, counted from the classes' mean `[classes]`.

    A build that gives every image the same answer has 0 here, however near that answer is. Each logit has `least`
    beside it, so that images which the model hardly tells apart are not all there is to it.
    """
    a, b = (values.astype(np.float64) - mean for values in (expected, got))
    beside = a.size * _flat(expected.astype(np.float64), least) ** 2
    norms = np.sqrt(((a**2).sum() + beside) * ((b**2).sum() + beside))
    return float(((a * b).sum() + beside) / norms)


def _flat(values: np.ndarray, least: float) -> float:
    return max(least, FLAT * float(np.sqrt((values**2).mean())), 1e-12)


@dataclass(frozen=True, kw_only=True)
class _Allowed:
    """What `check_parity` was told about how to judge."""

    tolerance: Tolerance
    lengths: np.ndarray | None
    least_deviation: float
    patches: int

    def near(self, margins: np.ndarray) -> np.ndarray:
        """Return how near to its limit the logit of each gate may differ."""
        lengths = np.ones(margins.shape) if self.lengths is None else self.lengths
        found: np.ndarray = np.maximum(self.tolerance.gate_margin * lengths, LIMIT_ROUNDING)
        return found


def _path(
    name: str, effort: float, reference: Reference, build: Build, images: np.ndarray, allowed: _Allowed
) -> PathParity:
    told = [reference(image[None], effort) for image in images]
    logits = np.concatenate([expected for expected, *_ in told])
    unit, many = deviation(logits, allowed.least_deviation), logits.shape[1] >= MANY_CLASSES
    path = f"path {name!r} (effort {effort_text(effort)})"
    errors, cosines, got, wanted = [0.0], [1.0], list[np.ndarray](), list[np.ndarray]()
    moved, flips, choices = 0, 0, Choices()
    for index, (image, one) in enumerate(zip(images, told, strict=True)):
        run, where = build.run(reference, image[None], effort, one), f"{path}, image {index}"
        expected, gates, margins = run.expected[:3]
        if gates.shape != run.gates.shape:
            raise ParityError(f"{where}: gates have shape {list(run.gates.shape)}, expected {list(gates.shape)}")
        differs, chosen = judge_merges(run, allowed.tolerance, allowed.patches, where)
        moved, choices = moved + differs, choices + chosen
        if differs and run.pairs is None:
            continue  # from here on two models compute different functions
        if _first_flip(gates, run.gates, margins, allowed.near(margins), where):
            flips += 1
            continue
        error, cosine = _distance(expected, run.logits, unit, many, allowed.tolerance, where)
        errors.append(error)
        cosines.append(cosine)
        wanted.append(expected)
        got.append(run.logits)
    if got and not many:
        least = allowed.least_deviation
        mean = logits.mean(axis=0, dtype=np.float64)
        together = centred_cosine(np.concatenate(wanted), np.concatenate(got), mean, least)
        _check_direction(together, max(errors), len(got), allowed.tolerance, path)
        cosines.append(together)
    return PathParity(
        path=name,
        effort=effort,
        images=len(images),
        compared=len(got),
        open=float(np.mean([gates.sum() for _, gates, *_ in told])),
        flips=flips,
        moved=moved,
        max_abs_error=max(errors),
        error=max(errors) / unit,
        cosine=min(cosines),
        deviation=unit,
        pairs=choices.pairs,
        other_pairs=choices.other,
        pair_loss=choices.loss,
        far_pairs=choices.far,
    )


def _first_flip(expected: np.ndarray, got: np.ndarray, margins: np.ndarray, near: np.ndarray, where: str) -> bool:
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


def _distance(
    expected: np.ndarray, got: np.ndarray, unit: float, many: bool, tolerance: Tolerance, where: str
) -> tuple[float, float]:
    """Largest difference and cosine of one image's logits, within the tolerance; few logits have no cosine."""
    if expected.shape != got.shape or not np.isfinite(got).all():
        raise ParityError(f"{where}: logits {list(got.shape)} are not finite values of shape {list(expected.shape)}")
    a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    error = float(np.abs(a - b).max())
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)) if many else 1.0
    if error > tolerance.max_error * unit or cosine < tolerance.min_cosine:
        said = f", cosine {cosine:.6f} (at least {tolerance.min_cosine})" if many else ""
        raise ParityError(
            f"{where}: logits differ by up to {error:.4g}, {error / unit:.4g} of their deviation (allowed: "
            f"{tolerance.max_error}){said}"
        )
    return error, cosine


def _check_direction(cosine: float, error: float, images: int, tolerance: Tolerance, path: str) -> None:
    if cosine < tolerance.min_cosine:
        raise ParityError(
            f"{path}: over {images} images logits differ by up to {error:.4g}; counted from each class's mean their "
            f"cosine is {cosine:.6f} (at least {tolerance.min_cosine}): the build does not follow what images change"
        )
