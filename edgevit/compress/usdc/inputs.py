"""What a training run on a data set starts from, and what of it is looked at before anything slow begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgevit.compress.budgets import Budgets, check_budgets
from edgevit.compress.training.batches import Batches, evaluation
from edgevit.compress.training.distributed import World
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.errors import TrainingError
from edgevit.images.labelled import LabelledSet, check_labels, hold_out, subset
from edgevit.program.program import Program
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.program.tokens import with_merges


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything a training run starts from.

    Attributes:
        dense: the trained model, or one with a new head.
        teacher: whose outputs to follow; None trains on labels alone.
        data: training images.
        budgets: what the result may cost.
        recipe: the numbers.
        folder: where checkpoint, logs and the Program go.
        device: where to compute.
        world: the processes.
        teacher_cache: a folder that keeps the teacher's outputs for other runs with the same views.
        merges: the plan by which tokens merge, in training and in the result; `dense` has none.
        shifts: arrays of its points.
        notes: what else the budgets come from, such as `memory`; a run that is resumed must have the same.
    """

    dense: Program
    teacher: Program | None
    data: LabelledSet
    budgets: Budgets
    recipe: TrainRecipe
    folder: Path
    device: str = "cpu"
    world: World = World()
    teacher_cache: Path | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    merges: tuple[MergeSpec, ...] = ()
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)

    def with_merges(self, program: Program) -> Program:
        """Return `dense`, or what was made of its weights, with the plan of merges."""
        if not self.merges:
            return program
        return program.with_weights(self.shifts, with_merges(program.spec, self.merges))


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Images held out of training, uint8 `[n, height, width, 3]`, and their labels int64 `[n]` (-1: none)."""

    images: np.ndarray
    labels: np.ndarray


def check_inputs(job: Training) -> None:
    """Raise BudgetError or TrainingError where model, budgets and recipe do not go together."""
    _check_small(job.dense.spec, job.recipe.small)
    check_budgets(job.dense.spec, job.budgets)
    if job.budgets.learned and not job.recipe.epochs_joint:
        raise TrainingError(
            "epochs_joint is 0, but pruning and gates are learned there; make it 1 or more, or ask for all MACs"
        )


def _check_small(spec: ProgramSpec, side: int) -> None:
    """Raise TrainingError if smaller training images do not fit the model."""
    if not side:
        return
    if spec.stem.kind != "patch":
        raise TrainingError(
            f"small is {side}, but {spec.name} makes its tokens from overlapping windows, which are not resampled; "
            "leave `small` out of the recipe"
        )
    image = spec.image
    shorter = min(image.height, image.width)
    uneven = [length for length in (image.height, image.width) if length * side % (shorter * spec.stem.patch)]
    if side >= shorter or uneven:
        raise TrainingError(
            f"small is {side}, allowed for {spec.name} ({image.height} x {image.width} pixels): less than {shorter}, "
            f"with whole patches of {spec.stem.patch} pixels both ways; change `small` in the recipe, or leave it out"
        )


def batches_of(job: Training, data: LabelledSet) -> Batches:
    """Return this process's micro-batches of `data`; raise TrainingError where the recipe's batch does not fit."""
    r = job.recipe
    if len(data) < r.batch:
        raise TrainingError(
            f"{data.source} leaves {len(data)} images to train on, a batch takes {r.batch}; add images, or set batch "
            f"in the recipe to at most {len(data)}"
        )
    if r.batch % (r.accumulate * job.world.size):
        raise TrainingError(
            f"a batch of {r.batch} cannot be shared by {job.world.size} processes in {r.accumulate} parts; choose a "
            f"multiple of {r.accumulate * job.world.size}"
        )
    return Batches(
        data,
        job.dense.spec.image,
        batch=r.batch // r.accumulate,
        seed=r.seed,
        augment=r.augment,
        views=r.views,
        workers=r.workers,
        rank=job.world.rank,
        world=job.world.size,
    )


def split_data(job: Training) -> tuple[HeldOut, LabelledSet]:
    """Return images that set thresholds and mean outputs, and the rest, which trains; the same for every call.

    Raises:
        ImagesError: labels that do not fit the model, or too many unreadable images.
        TrainingError: too few images.
    """
    if job.data.labels is not None:
        check_labels(job.data, job.dense.spec.head.classes)
    count = min(job.recipe.threshold_images, len(job.data) // 4)
    labels = np.zeros(len(job.data), dtype=np.int64) if job.data.labels is None else job.data.labels
    rest, held = hold_out(labels, count / max(len(job.data), 1), job.recipe.seed)
    if not len(held):
        raise TrainingError(
            f"{job.data.source} is too small a data set: of its {len(job.data)} images none can be held out to set "
            "thresholds, as every class keeps one to train on; give at least 4 images, and more than there are classes"
        )
    images, held_labels = evaluation(subset(job.data, held), job.dense.spec.image)
    return HeldOut(images=images, labels=held_labels), subset(job.data, rest)
