"""The images of a training: which of them teach, the numbers of their classes, and which measure the result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.training.sets import open_data
from edgevit.errors import ImagesError, TrainingError
from edgevit.images.labelled import LabelledSet, compact_labels, place_set, subset
from edgevit.images.match import UNLABELLED
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import CLASS_NUMBERS, ProgramSpec
from edgevit.util.progress import Say


def supervision(
    data: LabelledSet, recipe: TrainRecipe, say: Say, *, unlabelled: bool, new_head: bool
) -> tuple[LabelledSet, TrainRecipe]:
    """Return the data that can be learned from, and the recipe for it: without labels only the teacher teaches.

    Args:
        data: training images.
        recipe: as it was given.
        say: told what is left out.
        unlabelled: whether no labels are to be used.
        new_head: whether the classifier starts anew, which needs labels.

    Raises:
        TrainingError: a new head, and no labels.
    """
    if unlabelled or data.labels is None:
        if new_head:
            raise TrainingError(
                f"a new head needs labelled data, and {data.source} has no labels (or --unlabelled leaves them out); "
                "leave out --new-head"
            )
        if recipe.teacher < 1:
            say("training without labels: the given model's outputs are all that is followed (teacher = 1)")
        return replace(data, labels=None), replace(recipe, teacher=1.0)
    missing = int((data.labels == UNLABELLED).sum())
    if not missing or (recipe.teacher == 1 and not new_head):
        return data, recipe
    say(f"{missing} of {len(data)} images have no label and are left out; --unlabelled trains on all, without labels")
    return subset(data, np.flatnonzero(data.labels != UNLABELLED)), recipe


def with_head(given: Program, data: LabelledSet) -> tuple[Program, LabelledSet]:
    """Return the model with a head of zeros for the classes of the data, and the data with these numbers."""
    data, originals = compact_labels(data)
    count = len(originals)
    if count < 2:
        raise ImagesError(
            f"{data.source} shows images of {count} class, from which a new head learns to tell nothing apart (its "
            "top-1 would always be 100 %); give images of at least two classes, or omit --new-head"
        )
    names = data.classes if len(data.classes) == count and all(data.classes) else ()
    origin = {k: v for k, v in given.spec.origin.items() if k != CLASS_NUMBERS}
    if originals != tuple(range(count)):
        origin[CLASS_NUMBERS] = " ".join(map(str, originals))
    head = replace(given.spec.head, classes=count, linear=True)
    spec = replace(given.spec, head=head, labels=names, origin=origin)
    shapes = expected_shapes(spec)
    return given.with_weights({n: np.zeros(shapes[n], np.float32) for n in ("head.weight", "head.bias")}, spec), data


def numbered(data: LabelledSet, spec: ProgramSpec, say: Say) -> LabelledSet:
    """Return the data with the model's classes as labels."""
    if data.labels is None:
        return data
    if CLASS_NUMBERS in spec.origin:
        return _placed(data, spec, say)
    used = len(np.unique(data.labels[data.labels != UNLABELLED]))
    count = len(data.classes) or used
    if spec.head.classes not in (count, used):
        raise ImagesError(
            f"{data.source} has {count} classes, but {spec.name} has {spec.head.classes}; pass --new-head to train a "
            "new head for these images, or --unlabelled to follow the model without labels (if the images show some of "
            "its own classes, --classes keeps those)"
        )
    return _placed(data, spec, say)


def _placed(data: LabelledSet, spec: ProgramSpec, say: Say) -> LabelledSet:
    placed, how = place_set(data, spec)
    if how:
        say(how)
    return placed


def measured_on(
    data: LabelledSet, spec: ProgramSpec, given: str, evaluation: str | None, say: Say
) -> LabelledSet | None:
    """Return what to measure top-1 on; None where nothing was asked for and the data has no test split.

    Args:
        data: training images, with the model's classes as labels.
        spec: the model.
        given: where the training images are.
        evaluation: images that were asked for instead (None: none).
        say: told how labels of other images are read.
    """
    splits = open_data(evaluation).splits if evaluation else data.splits
    split = next((name for name in ("val", "test") if name in splits), None)
    if split is None and evaluation is None:
        return None
    found = open_data(evaluation or given, split)
    if found.labels is None or (data.labels is None and evaluation is None):
        return replace(found, labels=None)
    return _placed(found, spec, say if evaluation else silent)


def silent(line: str) -> None:
    """Say nothing, as all processes but the first do."""
