"""Measure the operating points of a build: efforts from all skipped to all open, what they cost and what they answer.

`fast` and `fastest` are as little effort as leaves most answers what they are as calibrated; where that is one effort,
`fast` is half of the way to it, by MACs. `accurate` is half of the way from as calibrated to all open. Calibration
images tell where that is, others what it is worth. What that takes here is told too, but kept apart: a bundle says
nothing of the machine that it was built on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from edgevit.backends import Runner
from edgevit.backends.reference import reference, taps
from edgevit.build.case import LEAST_PART, Case, head_deviation
from edgevit.build.crew import answers, crew
from edgevit.onnx_form.assemble import detached
from edgevit.program.macs import run_macs
from edgevit.program.original import kept_answers
from edgevit.schema.claims import Fraction
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.points import OperatingPoint, PointName
from edgevit.util.progress import Say, track
from edgevit.util.threads import in_order
from edgevit.verify.accuracy import NEAR, fraction
from edgevit.verify.parity import deviation_over_images

# Share of answers that must stay what they are as calibrated.
KEPT: dict[PointName, float] = {"fast": 0.95, "fastest": 0.85}
# Efforts that are tried on either side of 0.
GRID = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
FAR = 0.2  # of the MACs at which answers change: the rest of the curve then has a point of its own
TRIED_IMAGES, MEASURED_IMAGES = 32, 64


@dataclass(frozen=True, kw_only=True)
class PointTime:
    """CPU time of an image at one operating point on this machine, each image run once: the mean, and the most."""

    effort: float
    mean_ms: float
    most_ms: float


@dataclass(frozen=True, kw_only=True)
class Points:
    """The operating points of a build, from the cheapest, and their times here (none: it does not run here)."""

    measured: tuple[OperatingPoint, ...] = ()
    times: tuple[PointTime, ...] = ()


class _Run(NamedTuple):
    """A run of one image: logits `[1, classes]`, MACs, branches that ran, and CPU time in ms."""

    logits: np.ndarray
    macs: int
    branches: int
    cpu_ms: float


class _Tried(NamedTuple):
    """An effort, the share of answers that are as calibrated, and the mean MACs."""

    effort: float
    same: float
    macs: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judge:
    """Images to measure on, and what answers are held against, each `[n]` (None: not known).

    `expected` are the classes of the original model, or where it does not know the images of the build's float model.
    """

    images: np.ndarray
    expected: np.ndarray | None
    labels: np.ndarray | None
    against: Literal["original", "float"]


def measure_points(
    case: Case, runner: Runner, say: Say = lambda _: None, *, floats: np.ndarray | None = None
) -> Points:
    """Return the operating points of a build and their times; none where effort moves nothing.

    What does not run here is measured as its lowered graph computes it, whose gates parity has compared.

    Args:
        case: the build.
        runner: the compiled model.
        say: told what is done.
        floats: classes that the float model names for the images that accuracy is judged on, int64 `[n]`, where that
            is known already; for all of them, else it is asked.
    """
    spec = case.program.spec
    if not spec.steered:
        return Points()
    say("Measuring operating points")
    elsewhere = case.elsewhere or not case.runnable
    watched = reference(case.model) if elsewhere else runner
    with crew(case, watched) as runners:
        efforts = _efforts(case, runners)
    judge = _judge(case, floats)
    named = {effort for effort, name in efforts if name is not None}
    wanted = [(effort, name) for effort, name in efforts if name is not None or effort not in named]
    apart = track(list(dict.fromkeys(effort for effort, _ in wanted)), "Measuring points")
    runs = {effort: [_run(case, watched, image, effort) for image in judge.images] for effort in apart}
    measured = {effort: _judged(judge, effort, taken) for effort, taken in runs.items()}
    return Points(
        measured=tuple(replace(measured[effort], name=name) for effort, name in wanted),
        times=() if elsewhere else tuple(_time(effort, taken) for effort, taken in runs.items()),
    )


def _efforts(case: Case, runners: Sequence[Runner]) -> list[tuple[float, PointName | None]]:
    """Return the efforts to measure, with their names, from the least: those without one mark the end of the curve."""
    images = case.calibration.images[:TRIED_IMAGES]
    before, macs = _answers(case, runners, images, 0.0)
    tried = [_Tried(0.0, 1.0, float(macs.mean()))]
    for effort in (-effort for effort in GRID):
        logits, cost = _answers(case, runners, images, effort)
        tried.append(_Tried(effort, float(_same(case, logits, before).mean()), float(cost.mean())))
        if tried[-1].same < min(KEPT.values()):
            break
    fastest, fast = _cheap(tried)
    ends: list[tuple[float, PointName | None]] = [(EFFORT_ALL_SKIPPED, None)]
    if tried[-1].same < min(KEPT.values()):
        ends += [(effort, None) for effort in (*_below(case, runners, images, tried[-1]), tried[-1].effort)]
    named: list[tuple[float, PointName | None]] = [
        (fastest, "fastest"),
        (fast, "fast"),
        (0.0, "balanced"),
        (_accurate(case, runners, images, macs.mean()), "accurate"),
        (EFFORT_ALL_OPEN, "full"),
    ]
    return [*ends, *named]


def _cheap(tried: Sequence[_Tried]) -> tuple[float, float]:
    """Return the efforts of `fastest` and `fast`: fewest MACs that keep enough answers, and of equal ones the nearest.

    Args:
        tried: from as calibrated to less and less effort.
    """
    fastest, fast = (
        min((t for t in tried if t.same >= KEPT[name]), key=lambda t: t.macs) for name in ("fastest", "fast")
    )
    if fast.macs > fastest.macs or fast is tried[0]:
        return fastest.effort, fast.effort
    rising = [t for t in reversed(tried) if fastest.effort <= t.effort]
    macs = np.maximum.accumulate([t.macs for t in rising])
    return fastest.effort, _between([t.effort for t in rising], macs, (fastest.macs + tried[0].macs) / 2)


def _below(case: Case, runners: Sequence[Runner], images: np.ndarray, last: _Tried) -> list[float]:
    """Return the effort with MACs half of the way from the `last` that was tried to all skipped; none if that is near.

    What lies below may be most of the curve, where a model can be made far cheaper than it is as calibrated.
    """
    least = _answers(case, runners, images, EFFORT_ALL_SKIPPED)[1].mean()
    wanted, deeper = (last.macs + least) / 2, [effort for effort in GRID if -effort < last.effort]
    tried = [(last.effort, last.macs)]
    if last.macs - least < FAR * last.macs:
        return []
    for effort in deeper:
        tried.insert(0, (-effort, float(_answers(case, runners, images, -effort)[1].mean())))
        if tried[0][1] <= wanted:
            macs = np.maximum.accumulate([cost for _, cost in tried])
            return [_between([effort for effort, _ in tried], macs, float(wanted))]
    return []


def _accurate(case: Case, runners: Sequence[Runner], images: np.ndarray, least: float) -> float:
    """Return the effort with MACs half of the way from as calibrated, `least` on average, to all open."""
    efforts = (0.0, *GRID, EFFORT_ALL_OPEN)
    most = _answers(case, runners, images, efforts[-1])[1].mean()
    wanted = (least + most) / 2
    counted = [least]
    for effort in efforts[1:-1]:
        counted.append(_answers(case, runners, images, effort)[1].mean())
        if counted[-1] >= wanted:
            break
    macs = np.maximum.accumulate([*counted, *[most] * (len(efforts) - len(counted))])
    return _between(efforts, macs, float(wanted))


def _answers(case: Case, runners: Sequence[Runner], images: np.ndarray, effort: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float32 `[n, classes]` and MACs `[n]` of images at an effort."""
    told = list(answers(case, runners, images, effort))
    return np.concatenate([logits for logits, *_ in told]), np.array([_macs(case, *rest) for _, *rest in told])


def _macs(case: Case, gates: np.ndarray, tokens: np.ndarray | None = None) -> int:
    return run_macs(case.program.spec, gates, tokens)


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


def _run(case: Case, runner: Runner, image: np.ndarray, effort: float) -> _Run:
    """Run an image uint8 `[height, width, 3]`."""
    spec = case.program.spec
    # Machine code for one thread runs on this one: the thread that draws a progress bar is then not counted.
    clock = time.thread_time if case.runtime.NATIVE and case.target.threads == 1 else time.process_time
    begin = clock()
    logits, gates, *tokens = (runner.answer if spec.adaptive else runner.run)(image[None], effort)
    cpu_ms = 1000 * (clock() - begin)
    return _Run(logits, _macs(case, gates, *tokens), int(gates.sum()), cpu_ms)


def _time(effort: float, runs: Sequence[_Run]) -> PointTime:
    times = [run.cpu_ms for run in runs]
    return PointTime(effort=effort, mean_ms=float(np.mean(times)), most_ms=max(times))


def _judge(case: Case, floats: np.ndarray | None) -> _Judge:
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
    if floats is not None and len(floats) == len(judged):
        expected = floats[chosen]
    else:
        run = taps(*detached(case.program))
        expected = np.array(list(in_order(lambda image: run(image[None])["logits"].argmax(), images)))
    return _Judge(images=images, expected=expected, labels=labels, against="float")


def _judged(judge: _Judge, effort: float, runs: Sequence[_Run]) -> OperatingPoint:
    """Return what the runs of the judge's images cost, and which of their answers are right."""
    macs = np.array([run.macs for run in runs])
    classes = np.array([run.logits.argmax() for run in runs])

    def share(right: np.ndarray | None) -> Fraction | None:
        return None if right is None else fraction(classes == right)

    return OperatingPoint(
        effort=effort,
        name=None,
        macs=float(macs.mean()),
        worst_macs=int(macs.max()),
        branches=float(np.mean([run.branches for run in runs])),
        images=len(runs),
        agreement=share(judge.expected),
        top1=share(judge.labels),
        against=judge.against,
    )
