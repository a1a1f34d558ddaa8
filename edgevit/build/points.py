"""Measure the operating points of a build: efforts from all skipped to all open, what they cost and what they answer.

Which efforts these are follows from MACs: `fast` is a quarter of the way from the build as calibrated to all skipped,
`accurate` half of the way to all open. A few images tell where that is, more of them what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgevit.backends import Runner
from edgevit.backends.reference import reference
from edgevit.build.case import Case
from edgevit.onnx_form.assemble import detached
from edgevit.program.macs import run_macs
from edgevit.program.original import kept_answers
from edgevit.schema.claims import Fraction
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.points import OperatingPoint, PointName
from edgevit.util.progress import Say, track
from edgevit.verify.accuracy import fraction

# A point's place by its MACs: -1 all skipped, 0 as calibrated, 1 all open.
PLACES: tuple[tuple[float, PointName | None], ...] = (
    (-1.0, None),
    (-0.75, None),
    (-0.5, "fastest"),
    (-0.25, "fast"),
    (0.0, "balanced"),
    (0.5, "accurate"),
    (1.0, "full"),
)
KNOWN = {-1.0: EFFORT_ALL_SKIPPED, 0.0: 0.0, 1.0: EFFORT_ALL_OPEN}
GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # efforts that are tried on either side of 0
TRIED_IMAGES, MEASURED_IMAGES = 16, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judge:
    """Images to measure on, and what answers are held against, each `[n]` (None: not known).

    `expected` are the classes of the original model, or where it does not know the images of the build's float model.
    """

    images: np.ndarray
    expected: np.ndarray | None
    labels: np.ndarray | None
    against: Literal["original", "float"]


def measure_points(case: Case, runner: Runner, say: Say = lambda _: None) -> tuple[OperatingPoint, ...]:
    """Return the operating points of a build, from the cheapest; none where effort moves nothing.

    What does not run here is measured as its lowered graph computes it, whose gates parity has compared.
    """
    spec = case.program.spec
    if not spec.steered:
        return ()
    say("Measuring operating points")
    watched = reference(case.model) if case.elsewhere or not case.runnable else runner
    efforts = _efforts(case, watched)
    judge = _judge(case)
    points = [_measure(case, watched, judge, effort, name) for effort, name in track(efforts, "Measuring points")]
    named = {point.effort for point in points if point.name is not None}
    return tuple(point for point in points if point.name is not None or point.effort not in named)


def _efforts(case: Case, runner: Runner) -> list[tuple[float, PointName | None]]:
    """Return the effort of every place, with its name: found between efforts whose MACs were counted."""
    images = case.calibration.images[:TRIED_IMAGES]
    sides = {-1: [EFFORT_ALL_SKIPPED, *(-effort for effort in reversed(GRID)), 0.0], 1: [0.0, *GRID, EFFORT_ALL_OPEN]}
    counted = {
        effort: float(np.mean([_macs(case, runner, image, effort)[0] for image in images]))
        for effort in track(sorted({*sides[-1], *sides[1]}), "Looking for operating points")
    }
    found: list[tuple[float, PointName | None]] = []
    for place, name in PLACES:
        if place in KNOWN:
            found.append((KNOWN[place], name))
            continue
        side = sides[1 if place > 0 else -1]
        macs = np.maximum.accumulate([counted[effort] for effort in side])
        wanted = macs[0] + (place if place > 0 else 1 + place) * (macs[-1] - macs[0])
        found.append((_between(side, macs, float(wanted)), name))
    return found


def _between(efforts: Sequence[float], macs: np.ndarray, wanted: float) -> float:
    """Return the effort with these MACs, on a line between the two that are nearest; three digits are enough."""
    index = int(np.searchsorted(macs, wanted))
    ends = [min(max(effort, -2 * GRID[-1]), 2 * GRID[-1]) for effort in efforts]
    if index == 0:
        return float(ends[0])
    share = (wanted - macs[index - 1]) / (macs[index] - macs[index - 1])
    return float(f"{ends[index - 1] + share * (ends[index] - ends[index - 1]):.3g}")


def _macs(case: Case, runner: Runner, image: np.ndarray, effort: float) -> tuple[int, int, int]:
    """Return MACs of one image uint8 `[height, width, 3]`, how many branches ran, and the class it is given."""
    spec = case.program.spec
    if spec.adaptive:
        logits, gates, tokens = runner.answer(image[None], effort)
        return run_macs(spec, gates, tokens), int(gates.sum()), int(logits.argmax())
    logits, gates = runner.run(image[None], effort)
    return run_macs(spec, gates), int(gates.sum()), int(logits.argmax())


def _judge(case: Case) -> _Judge:
    """Return images that nothing was chosen by where there are such, spread over the set."""
    judged = case.evaluation or case.calibration
    chosen = np.unique(np.linspace(0, len(judged) - 1, min(len(judged), MEASURED_IMAGES)).round().astype(int))
    images, spec = judged.images[chosen], case.program.spec
    labels = None if case.evaluation is None or judged.labels is None else judged.labels[chosen]
    if not spec.head.decides:
        return _Judge(images=images, expected=None, labels=None, against="float")
    kept = kept_answers(spec, judged.images)
    if kept is not None:
        return _Judge(images=images, expected=kept[chosen], labels=labels, against="original")
    floats = reference(*detached(case.program))
    expected = np.array([floats.run(image[None])[0].argmax() for image in images])
    return _Judge(images=images, expected=expected, labels=labels, against="float")


def _measure(case: Case, runner: Runner, judge: _Judge, effort: float, name: PointName | None) -> OperatingPoint:
    runs = [_macs(case, runner, image, effort) for image in judge.images]
    macs, branches, classes = (np.array(column) for column in zip(*runs, strict=True))

    def share(right: np.ndarray | None) -> Fraction | None:
        return None if right is None else fraction(classes == right)

    return OperatingPoint(
        effort=effort,
        name=name,
        macs=float(macs.mean()),
        worst_macs=int(macs.max()),
        branches=float(branches.mean()),
        images=len(runs),
        agreement=share(judge.expected),
        top1=share(judge.labels),
        against=judge.against,
    )
