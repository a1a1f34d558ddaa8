"""Measure the operating points of a build: efforts from all skipped to all open, what they cost and what they answer.

`fast` and `fastest` are as little effort as leaves most answers what they are as calibrated; `accurate` is half of the
way from there to all open, by MACs. Calibration images tell where that is, others what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgevit.backends import Runner
from edgevit.backends.reference import reference
from edgevit.build.case import LEAST_PART, Case, head_deviation
from edgevit.onnx_form.assemble import detached
from edgevit.program.macs import run_macs
from edgevit.program.original import kept_answers
from edgevit.schema.claims import Fraction
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.points import OperatingPoint, PointName
from edgevit.util.progress import Say, track
from edgevit.verify.accuracy import NEAR, fraction
from edgevit.verify.parity import deviation_over_images

# Share of answers that must stay what they are as calibrated.
KEPT: dict[PointName, float] = {"fast": 0.95, "fastest": 0.85}
# Efforts that are tried on either side of 0.
GRID = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
TRIED_IMAGES, MEASURED_IMAGES = 32, 64


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
    efforts, judge = _efforts(case, watched), _judge(case)
    named = {effort for effort, name in efforts if name is not None}
    wanted = [(effort, name) for effort, name in efforts if name is not None or effort not in named]
    apart = track(list(dict.fromkeys(effort for effort, _ in wanted)), "Measuring points")
    measured = {effort: _measure(case, watched, judge, effort) for effort in apart}
    return tuple(replace(measured[effort], name=name) for effort, name in wanted)


def _efforts(case: Case, runner: Runner) -> list[tuple[float, PointName | None]]:
    """Return the efforts to measure, with their names, from the least: two of them mark the ends of the curve."""
    images = case.calibration.images[:TRIED_IMAGES]
    before, macs = _answers(case, runner, images, 0.0)
    lowest: dict[PointName, float] = dict.fromkeys(KEPT, 0.0)
    for effort in (-effort for effort in GRID):
        share = float(_same(case, _answers(case, runner, images, effort)[0], before).mean())
        lowest |= {name: effort for name, least in KEPT.items() if share >= least and lowest[name] > effort}
        if share < min(KEPT.values()):
            break
    ends: list[tuple[float, PointName | None]] = [(EFFORT_ALL_SKIPPED, None), (effort, None)]
    named: list[tuple[float, PointName | None]] = [
        (lowest["fastest"], "fastest"),
        (lowest["fast"], "fast"),
        (0.0, "balanced"),
        (_accurate(case, runner, images, macs.mean()), "accurate"),
        (EFFORT_ALL_OPEN, "full"),
    ]
    return [*ends, *named]


def _accurate(case: Case, runner: Runner, images: np.ndarray, least: float) -> float:
    """Return the effort with MACs half of the way from as calibrated, `least` on average, to all open."""
    efforts = (0.0, *GRID, EFFORT_ALL_OPEN)
    most = _answers(case, runner, images, efforts[-1])[1].mean()
    wanted = (least + most) / 2
    counted = [least]
    for effort in efforts[1:-1]:
        counted.append(_answers(case, runner, images, effort)[1].mean())
        if counted[-1] >= wanted:
            break
    macs = np.maximum.accumulate([*counted, *[most] * (len(efforts) - len(counted))])
    return _between(efforts, macs, float(wanted))


def _answers(case: Case, runner: Runner, images: np.ndarray, effort: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float32 `[n, classes]` and MACs `[n]` of images at an effort."""
    runs = [_run(case, runner, image, effort) for image in images]
    return np.concatenate([logits for logits, _, _ in runs]), np.array([macs for _, macs, _ in runs])


def _same(case: Case, logits: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return for which images two answers say the same, bool `[n]`: a class, or scores and features that are near."""
    if case.program.spec.head.decides:
        return np.asarray(logits.argmax(axis=1) == before.argmax(axis=1))
    away = np.sqrt(((logits - before) ** 2).mean(axis=1))
    return np.asarray(away <= NEAR * deviation_over_images(before, LEAST_PART * head_deviation(case.program)))


def _between(efforts: Sequence[float], macs: np.ndarray, wanted: float) -> float:
    """Return the effort with these MACs, on a line between the two that are nearest; three digits are enough."""
    index = int(np.searchsorted(macs, wanted))
    ends = [min(effort, 2 * GRID[-1]) for effort in efforts]
    if index == 0:
        return float(ends[0])
    share = (wanted - macs[index - 1]) / (macs[index] - macs[index - 1])
    return float(f"{ends[index - 1] + share * (ends[index] - ends[index - 1]):.3g}")


def _run(case: Case, runner: Runner, image: np.ndarray, effort: float) -> tuple[np.ndarray, int, int]:
    """Return logits of an image uint8 `[height, width, 3]`, its MACs, and how many branches ran."""
    spec = case.program.spec
    if spec.adaptive:
        logits, gates, tokens = runner.answer(image[None], effort)
        return logits, run_macs(spec, gates, tokens), int(gates.sum())
    logits, gates = runner.run(image[None], effort)
    return logits, run_macs(spec, gates), int(gates.sum())


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


def _measure(case: Case, runner: Runner, judge: _Judge, effort: float) -> OperatingPoint:
    runs = [_run(case, runner, image, effort) for image in judge.images]
    macs, branches = (np.array(column) for column in list(zip(*runs, strict=True))[1:])
    classes = np.array([logits.argmax() for logits, _, _ in runs])

    def share(right: np.ndarray | None) -> Fraction | None:
        return None if right is None else fraction(classes == right)

    return OperatingPoint(
        effort=effort,
        name=None,
        macs=float(macs.mean()),
        worst_macs=int(macs.max()),
        branches=float(branches.mean()),
        images=len(runs),
        agreement=share(judge.expected),
        top1=share(judge.labels),
        against=judge.against,
    )
