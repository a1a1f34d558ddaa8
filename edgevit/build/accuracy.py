"""What compression and quantization cost: the bundle against the float model, and both against the original."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.backends import Runner, desk
from edgevit.backends.reference import reference_with_margins, taps
from edgevit.build.case import LEAST_PART, Case, claim, head_deviation
from edgevit.onnx_form.assemble import detached
from edgevit.program.original import kept_answers, told, when_compressed
from edgevit.program.spec import ProgramSpec
from edgevit.schema.claims import AccuracyFigures, Claim, OriginalResult
from edgevit.schema.manifest import AccuracyRow
from edgevit.verify.accuracy import Named, Run, judge, name_classes
from edgevit.verify.merges import under_same_pairs
from edgevit.verify.original import accuracy_rows, compare_original
from edgevit.verify.parity import INT8

EMULATED_IMAGES = 4  # each takes seconds


def verify_accuracy(case: Case, runner: Runner) -> tuple[tuple[AccuracyRow, ...], Claim, Named]:
    """Hold the bundle against the float model that was quantized, and both against the original where it is known.

    Returns rows of the report, the claim, and what the bundle and the float model decided.

    Raises:
        AccuracyError: more is lost than the target, or the limit against the original, allows.
    """
    limits: dict[str, float] = {"min_agreement": case.target.min_agreement, "max_top1_drop": case.target.max_top1_drop}

    def bundle(image: np.ndarray) -> np.ndarray:
        return runner.run(image)[0]

    judged = case.evaluation or case.calibration
    # In an emulator an image takes seconds, and top-1 of a few says nothing, unless a limit asks for it.
    count = EMULATED_IMAGES if case.elsewhere else len(judged)
    images = judged.images[:count]
    labels = None if judged.labels is None or case.evaluation is None else judged.labels[:count]
    if case.elsewhere and case.max_drop is None:
        labels = None
    spec = case.program.spec
    named = _explain(case, _compare(case, bundle, images), images)
    result = judge(named, labels, **limits)
    answers = answers_of(spec, named, judged.images)
    against: OriginalResult | None = None
    judged_on = _judged_on(case)
    summary = f"{result.summary}{judged_on}; against the original: {told(spec.original, spec.head.classes)}"
    if answers is not None:
        against = compare_original(answers[:count], named, labels, compressed=spec.compressed, max_drop=case.max_drop)
        # Few images without labels say little; labelled ones that were seen before are said beside them.
        when = when_compressed(spec.original, spec.head.classes, labelled=True) if labels is None else ""
        summary = f"{against.summary}{judged_on}{'; ' if when else ''}{when}"
    figures = AccuracyFigures(against_float=result, against_original=against)
    return accuracy_rows(result, against), claim(summary, figures), named


def _compare(case: Case, bundle: Run, images: np.ndarray) -> Named:
    """Return what the bundle and the float model name; the float weights are held no longer than this takes."""
    floats = taps(*detached(case.program))
    least = LEAST_PART * head_deviation(case.program)
    features = not case.program.spec.head.linear
    return name_classes(
        bundle, lambda image: floats(image)["logits"], images, features=features, least_deviation=least, threads=None
    )


def _explain(case: Case, named: Named, images: np.ndarray) -> Named:
    """Return the same, with where both differ only because they merge other tokens."""
    if case.elsewhere or not case.program.spec.merges or named.decides != "class":
        return named
    merged = desk(case.target.backend).merged(case)
    if merged is None:
        return named
    floats, explained = reference_with_margins(*detached(case.program)), np.zeros(len(images), bool)
    for index in np.flatnonzero(named.build != named.floats):
        logits = under_same_pairs(floats, merged, images[index][None], 0.0, INT8)
        explained[index] = logits is not None and logits.argmax() == named.build[index]
    return replace(named, explained=explained)


def answers_of(spec: ProgramSpec, named: Named, images: np.ndarray) -> np.ndarray | None:
    """Return what the original says of the images, where that is known; classes are all that is kept of its answers."""
    if not spec.compressed:
        return named.floats
    return kept_answers(spec, images) if named.decides == "class" else None


def _judged_on(case: Case) -> str:
    """Return which images, where they are not labelled ones that the user gave to judge with."""
    if case.evaluation is None:
        return ", on the calibration images themselves, which are too few to hold any out"
    return "" if case.evaluation.labels is not None else ", on images held out of the calibration"
