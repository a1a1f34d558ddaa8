"""What a training made: `Trained`, with both models measured on test images, as `result.json` keeps it."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgevit import __version__
from edgevit.build.prediction import bound_bytes
from edgevit.compress.adaptivity import Adaptivity, measure_adaptivity
from edgevit.compress.gate.judge import Answers, answers
from edgevit.compress.training.batches import evaluation
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc.inputs import Training, split_data
from edgevit.images.labelled import LabelledSet
from edgevit.images.match import UNLABELLED, chance_warning
from edgevit.program.macs import total_macs
from edgevit.program.original import evaluate, with_original
from edgevit.program.program import Program, expected_shapes, save_program
from edgevit.program.spec import OriginalEvaluation, ProgramSpec
from edgevit.schema.target import Target
from edgevit.util.progress import Say

ROOM = 0.1  # of a memory budget: less than so much below is near
PACKAGES = ("torch", "timm", "numpy")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model: costs, units left, and top-1 at batch 1 where there are labels (None: without, or a new head).

    `macs` is the mean per image, `bound_bytes` the memory bound predicted for an int8 build (None: no bound there).
    """

    top1: float | None
    macs: float
    all_open_macs: int
    weights_bytes: int
    bound_bytes: int | None
    heads: int
    neurons: int
    branches: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training made; `DIR/result.json` is this. `load(trained.program)` is the model.

    `images` of `evaluated_on` were answered one by one; `agreement` is on how many of them both models name the same
    class (None with a new head). `adaptivity` says what its cost follows the image by, and what that is worth (None:
    every image costs the same).
    """

    folder: str
    program: str
    model: str
    target: str
    dense: Figures
    compressed: Figures
    agreement: float | None
    images: int
    evaluated_on: str
    expected_budget: float
    static_budget: float
    memory_budget_bytes: int | None
    recipe: TrainRecipe
    data: str
    data_sha256: str
    versions: dict[str, str]
    adaptivity: Adaptivity | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedTraining:
    """A training, the images to measure on (None: those held out), and whether the given model can answer them."""

    training: Training
    measured: LabelledSet | None
    target: Target
    limit_bytes: int | None
    comparable: bool


def evaluate_training(work: PreparedTraining, program: Program, say: Say) -> Trained:
    """Answer the test images one by one with both models."""
    training, dense, target = work.training, work.training.dense, work.target
    if work.measured is None:
        held, source = split_data(training)[0], f"images held out of {training.data.source}"
        images, labels = held.images, held.labels
    else:
        images, labels = evaluation(work.measured, dense.spec.image)
        if len(images) < len(work.measured):
            damaged = len(work.measured) - len(images)
            say(f"warning: {damaged} of {len(work.measured)} images to test on cannot be read and are left out")
        source = work.measured.source
    say(f"evaluating {len(images)} images, one by one")
    after = answers(program, images)
    before = answers(dense, images) if work.comparable else None
    compared = None if before is None or not dense.spec.head.decides else before.logits
    follows = measure_adaptivity(
        program, images, after, whole_macs=total_macs(dense.spec), labels=labels, original=compared
    )
    if before is not None:
        said = evaluate(Path(source).name, images, program.spec.image, before.logits, after.logits, labels)
        _keep(program, training.folder, said, follows)
    same = None if before is None else float((before.logits.argmax(1) == after.logits.argmax(1)).mean())
    given = _figures(dense.spec, before, labels, target)
    warned = chance_warning(given.top1 or 0.0, int((labels != UNLABELLED).sum()), dense.spec.head.classes)
    if warned and given.top1 is not None:
        say(warned)
    return Trained(
        folder=str(training.folder),
        program=str(training.folder / "program"),
        model=dense.spec.name,
        target=target.name,
        dense=given,
        compressed=_figures(program.spec, after, labels, target),
        agreement=same,
        adaptivity=follows,
        images=len(images),
        evaluated_on=source,
        expected_budget=training.budgets.expected,
        static_budget=training.budgets.static,
        memory_budget_bytes=work.limit_bytes,
        recipe=training.recipe,
        data=training.data.source,
        data_sha256=training.data.digest,
        versions={"edgevit": __version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    )


def _keep(program: Program, folder: Path, said: OriginalEvaluation, follows: Adaptivity | None) -> None:
    """Write the Program again, with what the given model and it answered, and what it is worth that costs differ."""
    known = program.spec.original
    if known is not None:
        if follows is not None:
            step = f"{follows.said}, on {follows.images} images of {said.source} (edgevit {__version__})"
            known = replace(known, steps=(*known.steps, step))
        save_program(with_original(program, known, said), folder / "program", force=True)


def compare_memory(result: Trained, say: Say) -> None:
    """Hold the bound against a memory budget from below: pruning was planned for an evenly scaled model."""
    limit, bound = result.memory_budget_bytes, result.compressed.bound_bytes
    if limit is None or bound is None or result.static_budget == 1 or bound >= (1 - ROOM) * limit:
        return
    kept = result.compressed.all_open_macs / result.dense.all_open_macs
    say(
        f"warning: the memory bound is {bound} of {limit} bytes, and {kept:.1%} of the MACs are left: more of the "
        "model would fit. Where pruning takes uneven parts of the branches, the size is hard to foresee; "
        f"give --static with more than {result.static_budget:.3f} instead of --memory"
    )


def _figures(spec: ProgramSpec, found: Answers | None, labels: np.ndarray, target: Target) -> Figures:
    known = labels != UNLABELLED
    top1 = None
    if found is not None and known.any():
        top1 = float((found.logits[known].argmax(axis=1) == labels[known]).mean())
    return Figures(
        top1=top1,
        macs=float(total_macs(spec)) if found is None else found.macs,
        all_open_macs=total_macs(spec),
        weights_bytes=4 * sum(math.prod(shape) for shape in expected_shapes(spec).values()),
        bound_bytes=bound_bytes(spec, target),
        heads=sum(b.units for b in spec.branches if b.kind == "mhsa"),
        neurons=sum(b.units for b in spec.branches if b.kind == "ffn"),
        branches=sum(not b.removed for b in spec.branches),
    )
