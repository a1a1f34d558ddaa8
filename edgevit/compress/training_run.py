"""One training run: a trained model and a data set to a pruned and gated Program, in a folder that can be resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import __version__
from edgevit.compress.gate.fold import fold_constant
from edgevit.compress.gate.threshold import calibrate_thresholds, check_spent
from edgevit.compress.prune.plan import check_kinds
from edgevit.compress.training import checkpoint
from edgevit.compress.training.batches import Batches, evaluation
from edgevit.compress.training.distributed import World
from edgevit.compress.training.head import fit_head, is_new
from edgevit.compress.training.log import CSV_NAME, Log
from edgevit.compress.training.loop import fit, stage_steps
from edgevit.compress.training.precision import bfloat16
from edgevit.compress.training.recipe import TrainRecipe, load_recipe, to_toml
from edgevit.compress.training.show import BranchState, Show
from edgevit.compress.training.teacher import Teacher
from edgevit.compress.usdc import (
    Budgets,
    Together,
    check_budgets,
    prepare,
    really_shrink,
    stage_settings,
)
from edgevit.errors import OutputError, ProgramError, TrainingError
from edgevit.images.labelled import LabelledSet, check_labels, hold_out, subset
from edgevit.program.macs import total_macs
from edgevit.program.original import original_of, weights_digest, with_original
from edgevit.program.program import Program, check_spec, expected_shapes, save_program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.vit import Vit
from edgevit.util import atomic, strict_json
from edgevit.util.ownership import Kind
from edgevit.util.progress import Say

CHECKPOINT = "checkpoint.pt"
RECIPE, RESULT = "recipe.toml", "result.json"
OUTPUTS: Mapping[str, Kind] = {"program": "program", CSV_NAME: "log", RESULT: "result"}
COLUMNS = ("stage", "loss", "rate", "gradient", "macs", "macs_budget", "static_macs", "price", "images_per_s")
STAGES = ("joint", "recover")
MEAN_IMAGES = 256
FREE = ("workers", "checkpoint_seconds")  # of a recipe: may differ when a run is resumed


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


def train(job: Training, *, resume: bool = False, say: Say = lambda _: None) -> Program:
    """Both stages and the thresholds; the Program is written to `folder`/program by the first process.

    Raises:
        TrainingError: the data, the recipe or the state do not allow to go on; the last checkpoint stays.
        BudgetError: a budget below what has to stay, or a result far from what was asked for; no Program is written.
        OutputError: there is a run already (and `resume` is false), or the disk refuses.
    """
    _check_small(job.dense.spec, job.recipe.small)
    check_budgets(job.dense.spec, job.budgets)
    compresses = job.budgets.prunes or job.budgets.gates
    if compresses and not job.recipe.epochs_joint:
        raise TrainingError(
            "epochs_joint is 0, but pruning and gates are learned there; make it 1 or more, or ask for all MACs"
        )
    state = _found(job, resume)
    held, trained = split_data(job)
    run = _Run(job=job, source=_source(job, trained), facts=_facts(job), say=say)
    if state is None or state["stage"] == "joint":
        program = _program_of(state) if state else _begun(job, held, trained, say)
        if compresses:
            model, together = run.stage(program.spec, Vit(program), joint=True, state=state)
            program = _pruned(model, together, say) if together.masks is not None else model.to_program()
            state = None
    else:
        program = _program_of(state)
    if job.recipe.epochs_recover:
        model, _ = run.stage(program.spec, Vit(program), joint=False, state=state)
        program = model.to_program()
    program = _with_thresholds(job, program, held.images, say)
    check_kinds(job.dense.spec, program.spec)
    program = program.with_weights({}, replace(program.spec, origin=program.spec.origin | _origin(job)))
    if unreadable := run.source.unreadable:
        say(f"warning: {len(unreadable)} images to train on cannot be read, others stood in (first: {unreadable[0]})")
    if compresses or job.dense.spec.compressed:
        program = with_original(program, original_of(job.dense, _step(job)))
    if job.world.main:
        save_program(program, job.folder / "program", force=True)
    return program


def _begun(job: Training, held: Held, trained: LabelledSet, say: Say) -> Program:
    """What the first stage begins with; to compress a model, a head of zeros is fitted first."""
    dense = job.dense
    if (job.budgets.prunes or job.budgets.gates) and is_new(dense):
        say("the head is new: it is fitted to the features first, so that importance says something")
        dense = fit_head(dense, trained, job.recipe.seed)
    return prepare(dense, job.budgets, held.images[:MEAN_IMAGES], job.recipe)


def _pruned(model: Vit, together: Together, say: Say) -> Program:
    """The trained model with only the units that its masks left, held against the budget from both sides."""
    plan = together.finish()
    note = together.reached(plan)
    if note:
        say(f"warning: {note}")
    return really_shrink(model, plan)


def _with_thresholds(job: Training, program: Program, images: np.ndarray, say: Say) -> Program:
    """The Program with thresholds that meet the budget on `images`, and without gates that decide alike for all."""
    if not program.spec.gated:
        return program
    dense, own = total_macs(job.dense.spec), total_macs(program.spec)
    share = min(job.budgets.expected * dense / own, 1.0)
    program = calibrate_thresholds(program, images, share)
    note = check_spent(program, images, share * own, dense)
    if note:
        say(f"warning: {note}")
    folded = fold_constant(program, images)
    fits = job.budgets.fits
    return folded if fits is None or fits(folded.spec) else program


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """Images held out of training, uint8 `[n, height, width, 3]`, and their labels int64 `[n]` (-1: none)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(kw_only=True)
class _Run:
    """What both stages share."""

    job: Training
    source: Batches
    facts: dict[str, str]
    say: Say

    def stage(
        self, spec: ProgramSpec, model: Vit, *, joint: bool, state: Mapping[str, Any] | None
    ) -> tuple[Vit, Together]:
        """Train one stage, from its beginning or from a state of it."""
        job = self.job
        freeze_features(model)
        together = Together(model, job.dense.spec, job.budgets, job.recipe, job.world, joint=joint)
        first = 0 if joint or not (job.budgets.prunes or job.budgets.gates) else self._joint_steps()
        settings = stage_settings(
            job.recipe,
            joint=joint,
            bfloat16=bfloat16(job.recipe.precision, job.device),
            first_step=first,
            learns=job.teacher is not None,
        )
        teacher = self._teacher()
        resumed = None if state is None else state["state"]
        total = stage_steps(self.source, settings)
        start = 0 if resumed is None else resumed["step"]

        def save(step: int, inner: dict[str, Any]) -> None:
            if job.world.main:
                document = {
                    "stage": settings.name,
                    "step": first + step,
                    "facts": self.facts,
                    "spec": strict_json.dumps(spec),
                    "state": inner,
                }
                checkpoint.save(job.folder / CHECKPOINT, document)
            job.world.barrier()

        with self._reporting(settings.name, first, start, total, together) as report:
            fit(
                model,
                self.source,
                settings,
                together,
                teacher=teacher,
                world=job.world,
                report=report,
                save=save,
                resume=resumed,
                device=job.device,
            )
        return model, together

    def _teacher(self) -> Teacher | None:
        job = self.job
        if job.teacher is None:
            return None
        precision = "bfloat16" if bfloat16(job.recipe.precision, job.device) else "float32"
        name = f"{weights_digest(job.teacher)} {precision}"
        return Teacher(
            Vit(job.teacher).to(job.device), name=name, folder=job.teacher_cache, tokens=job.recipe.tokens > 0
        )

    def _joint_steps(self) -> int:
        return self.job.recipe.epochs_joint * (self.source.steps // self.job.recipe.accumulate)

    def _reporting(self, stage: str, first: int, start: int, total: int, together: Together) -> _Reporter:
        return _Reporter(self.job, stage, first, start, total, together, self.say)


class _Reporter:
    """Log and display of one stage; silent on every process but the first."""

    def __init__(
        self, job: Training, stage: str, first: int, start: int, total: int, together: Together, say: Say
    ) -> None:
        self._job, self._first, self._together = job, first, together
        self._stage = STAGES.index(stage)
        self._log = Log(job.folder, resume_at=first + start + 1 if first + start else 0) if job.world.main else None
        self._show = Show(total, start=start, description=stage, say=say) if job.world.main else None

    def __enter__(self) -> Callable[[int, int, float, Mapping[str, float]], None]:
        if self._show is not None:
            self._show.__enter__()
        return self._report

    def __exit__(self, *details: Any) -> None:
        if self._show is not None:
            self._show.__exit__(*details)
        if self._log is not None:
            self._log.close()

    def _report(self, step: int, total: int, speed: float, figures: Mapping[str, float]) -> None:
        if self._log is None or self._show is None:
            return
        row = {"stage": float(self._stage), **figures, "images_per_s": round(speed, 1)}
        self._log.write(self._first + step, {name: row.get(name) for name in COLUMNS})
        self._show.update(step, speed, figures, self._branches())

    def _branches(self) -> list[BranchState]:
        units, rates = self._together.units(), self._together.open_rates()
        return [
            BranchState(
                name=b.name, kind=b.kind, units=units[b.name], units_total=b.units_total, open_rate=rates.get(b.name)
            )
            for b in self._together.spec.branches
        ]


def freeze_features(model: Vit) -> None:
    """T2T-ViT's random features (as in the Performer) and its sinusoidal positions are never learned (2101.11986)."""
    if model.spec.stem.kind == "patch":
        return
    for name, parameter in model.arrays.items():
        if name.endswith("/w") or name == "stem/pos":
            parameter.requires_grad_(False)


def kept(folder: Path) -> str:
    """What a run that was stopped left to go on from, in words."""
    path = folder / CHECKPOINT
    if not path.exists():
        return f"{folder} holds no checkpoint yet; start anew"
    try:
        state = checkpoint.load(path)
    except TrainingError as error:
        return str(error)
    return f"{path} is kept, of step {state.get('step')} in stage {state.get('stage')!r}; go on with --resume"


def _check_small(spec: ProgramSpec, side: int) -> None:
    """Hold the side of smaller training images against the model."""
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


def _source(job: Training, data: LabelledSet) -> Batches:
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


def split_data(job: Training) -> tuple[Held, LabelledSet]:
    """Images that set thresholds and mean outputs, and the rest, which trains; the same for every call.

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
    return Held(images=images, labels=held_labels), subset(job.data, rest)


def _found(job: Training, resume: bool) -> dict[str, Any] | None:
    """The state to go on from."""
    path = job.folder / CHECKPOINT
    _refuse_foreign(job.folder)
    if not resume:
        if path.exists() or (job.folder / "program").exists():
            raise OutputError(f"{job.folder} holds a training run already; pass --resume to go on, or another -o")
        if job.world.main:
            job.folder.mkdir(parents=True, exist_ok=True)
        job.world.barrier()
        return None
    if not path.exists():
        job.folder.mkdir(parents=True, exist_ok=True)
        return None
    state = checkpoint.load(path)
    before, now = state.get("facts"), _facts(job)
    stage, inner = state.get("stage"), state.get("state")
    known = isinstance(stage, str) and stage in STAGES and isinstance(state.get("spec"), str)
    if not known or not isinstance(before, dict) or not isinstance(inner, dict) or type(inner.get("step")) is not int:
        raise TrainingError(f"{path} is no checkpoint of `edgevit compress`; choose another folder with -o")
    changed = [
        f"{k} was {before.get(k, 'not given')}, is now {now.get(k, 'not given')}"
        for k in before.keys() | now
        if before.get(k) != now.get(k)
    ]
    if changed:
        raise TrainingError(
            f"{path} belongs to a run with other inputs: {'; '.join(sorted(changed))}. Resume with the same ones, or "
            "choose another folder with -o"
        )
    return state


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder where a file that the run will write is already, and is not of a run."""
    atomic.sweep(folder)
    for name, kind in OUTPUTS.items():
        atomic.refuse_foreign(folder / name, kind)
    recipe = folder / RECIPE
    try:
        whole = not os.path.lexists(recipe) or recipe.read_text(encoding="utf-8") == to_toml(load_recipe(recipe))
    except (TrainingError, OSError, UnicodeDecodeError):
        whole = False
    if not whole or recipe.is_symlink():
        raise OutputError(
            f"{recipe} is not what a training run leaves there, and would be replaced; choose another folder with -o, "
            "or move it away"
        )


def _facts(job: Training) -> dict[str, str]:
    """What a run must have in common with the one it resumes, in words."""
    recipe = strict_json.to_data(job.recipe)
    augment = recipe.pop("augment")
    numbers = {**recipe, **{f"augment.{k}": v for k, v in augment.items()}}
    return {
        "model": f"weights {weights_digest(job.dense)[:16]}",
        "teacher": "none" if job.teacher is None else f"weights {weights_digest(job.teacher)[:16]}",
        "data": f"{len(job.data)} images, digest {job.data.digest[:16]}",
        "expected MACs": f"{job.budgets.expected:.6g}",
        "static MACs": f"{job.budgets.static:.6g}",
        **job.notes,
        **{f"recipe {k}": str(v) for k, v in numbers.items() if k not in FREE},
    }


def _origin(job: Training) -> dict[str, str]:
    """What the Program tells of its training."""
    return {
        "compressed_by": f"edgevit {__version__}",
        "compressed_expected_macs": f"{job.budgets.expected:.6g}",
        "compressed_static_macs": f"{job.budgets.static:.6g}",
        "compressed_groups": job.recipe.groups,
        "compressed_seed": str(job.recipe.seed),
        "compressed_data": Path(job.data.source).name,
        "compressed_data_sha256": job.data.digest,
        **{f"compressed_{k}": v for k, v in job.notes.items()},
    }


def _step(job: Training) -> str:
    """What the training did to the given model, in a sentence."""
    return (
        f"trained to {job.budgets.expected:.0%} of its MACs expected and {job.budgets.static:.0%} loaded, on "
        f"{Path(job.data.source).name} (edgevit {__version__})"
    )


def _program_of(state: Mapping[str, Any]) -> Program:
    """A Program of the right shape for a state's model; its arrays are filled when the state is restored."""
    faults: list[str] = []
    try:
        spec = strict_json.from_data(ProgramSpec, strict_json.parse(state["spec"]), faults, "checkpoint")
    except ValueError as error:
        raise TrainingError(f"the checkpoint's model cannot be read: {error}; train anew without --resume") from error
    if spec is None:
        raise TrainingError("the checkpoint's model cannot be read:\n  " + "\n  ".join(faults))
    try:
        check_spec(spec)
    except ProgramError as error:
        raise TrainingError(f"the checkpoint's model is none: {error}; train anew without --resume") from error
    shapes = expected_shapes(spec)
    needed, held = sum(map(math.prod, shapes.values())), checkpoint.count_numbers(state)
    if needed > max(1 << 20, 2 * held):  # before they are allocated
        raise TrainingError(f"the checkpoint's model has {needed} weights, and it holds {held}; it is damaged")
    return Program(spec=spec, weights={n: np.zeros(s, dtype=np.float32) for n, s in shapes.items()})
