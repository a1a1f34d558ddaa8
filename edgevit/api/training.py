"""Compress a model by training it on a data set: find the model and the data, train, and report what came of it."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgevit import __version__
from edgevit.api.token_plan import Place, left_by, plan_tokens, shifts_of, without_merges
from edgevit.backends import backend
from edgevit.backends.targets import load_target
from edgevit.build.prediction import bound_bytes
from edgevit.build.preflight import Output, ready
from edgevit.compress.adaptivity import Adaptivity, measure_adaptivity
from edgevit.compress.budgets import Budgets, split_budget
from edgevit.compress.gate.judge import Answers, answers
from edgevit.compress.gate.subgroups import parse_groups
from edgevit.compress.memory_budget import fits, parse_bytes, static_for
from edgevit.compress.training.batches import evaluation
from edgevit.compress.training.device import device_of, use_threads
from edgevit.compress.training.distributed import World, join, leave, lost
from edgevit.compress.training.recipe import TrainRecipe, load_recipe, to_toml
from edgevit.compress.training.sets import open_data
from edgevit.compress.usdc.inputs import Training, split_data
from edgevit.compress.usdc.resume import RECIPE, RESULT, kept
from edgevit.compress.usdc.stages import with_crop
from edgevit.errors import ImagesError, OutputError, TrainingError
from edgevit.frontends.preprocessing import Preprocessing, with_preprocessing
from edgevit.frontends.resolve import resolve
from edgevit.images.labelled import LabelledSet, compact_labels, place_set, subset
from edgevit.images.match import UNLABELLED, chance_warning
from edgevit.pipeline import train as run_training
from edgevit.program.macs import total_macs
from edgevit.program.original import evaluate, with_original
from edgevit.program.program import Program, expected_shapes, save_program
from edgevit.program.spec import CLASS_NUMBERS, OriginalEvaluation, ProgramSpec
from edgevit.schema.target import Target
from edgevit.tasks.classes import keep_classes, read_classes
from edgevit.util import strict_json
from edgevit.util.progress import Say

__all__ = ["CompressJob", "Figures", "Trained", "run_compress"]

ROOM = 0.1  # of a memory budget: less than so much below is near
PACKAGES = ("torch", "timm", "numpy")


@dataclass(frozen=True, kw_only=True)
class CompressJob:
    """What was asked for, as the command line gives it; see `edgevit compress --help`."""

    model: str | Program
    data: str
    weights: Path | None = None
    macs: float = 1.0
    static: float | None = None
    tokens: str | None = None
    memory: str | None = None
    target: str = "x86-64-onnxruntime"
    evaluation: str | None = None
    recipe: Path | None = None
    image_size: tuple[int, int] | None = None
    classes: str | None = None
    new_head: bool = False
    unlabelled: bool = False
    groups: str | None = None
    seed: int | None = None
    device: str = "auto"
    threads: int | None = None
    teacher_cache: Path | None = None
    output: Path | None = None
    resume: bool = False
    preprocessing: Preprocessing = Preprocessing()
    ema: bool | None = None


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


def run_compress(job: CompressJob, say: Say = lambda _: None) -> Trained | None:
    """Train as `job` asks; under `torchrun` every process calls this, and all but the first return None.

    Raises:
        EdgevitError: see `edgevit.errors`; what was finished of the training can be resumed.
    """
    ready(_outputs(job))
    use_threads(job.threads)
    world = join()
    say = say if world.main else _silent
    try:
        work = _prepared(job, world, say)
        program = run_training(work.training, resume=job.resume, say=say)
    except KeyboardInterrupt:
        say(f"stopped; {kept(_folder(job))}")
        raise
    except RuntimeError as error:
        if world.size == 1 or not lost(error):
            raise
        raise TrainingError(f"{lost(error)}; {kept(_folder(job))}") from error
    finally:
        leave()
    if not world.main:
        return None
    result = _result(work, program, say)
    _compare_memory(result, say)
    _write(work.training.folder / RECIPE, to_toml(work.training.recipe))
    _write(work.training.folder / RESULT, strict_json.dumps(result))
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """A training, the images to measure on (None: those held out), and whether the given model can answer them."""

    training: Training
    measured: LabelledSet | None
    target: Target
    limit_bytes: int | None
    comparable: bool


def _prepared(job: CompressJob, world: World, say: Say) -> _Work:
    """Look at every input; nothing slow is begun."""
    recipe, target, device = _recipe(job), load_target(job.target), device_of(job.device)
    given = _with_classes(job, _found(job, recipe, say))
    data = open_data(job.data, "train")
    data, recipe = _supervision(job, data, recipe, say)
    plan = plan_tokens(job.tokens, given, data, job.macs**recipe.token_share, _place(job, world), say)
    given = without_merges(given)
    dense, data = _with_head(given, data) if job.new_head else (given, _numbered(data, given.spec, say))
    measured = _measured(job, data, dense.spec, say)
    limit_bytes = None if job.memory is None else parse_bytes(job.memory)
    ready(_outputs(job, 4 * sum(array.size for array in dense.weights.values())))
    if backend(target.backend).NATIVE:
        bound_bytes(dense.spec, target)  # the result needs it, and of machine code only its compiler can tell
    merged = left_by(plan, dense.spec, data)
    training = Training(
        dense=dense,
        teacher=dense if recipe.teacher and not job.new_head else None,
        data=data,
        budgets=_budgets(job, dense.spec, recipe, target, limit_bytes, merged, say),
        merges=plan.spec.merges,
        shifts=shifts_of(plan),
        recipe=recipe,
        folder=_folder(job),
        device=device,
        world=world,
        teacher_cache=job.teacher_cache,
        notes={} if limit_bytes is None else {"memory": f"{limit_bytes} bytes on {target.name}"},
    )
    return _Work(
        training=training, measured=measured, target=target, limit_bytes=limit_bytes, comparable=not job.new_head
    )


def _found(job: CompressJob, recipe: TrainRecipe, say: Say) -> Program:
    """Return the model with the recipe's crop, and with images prepared as the user says."""
    if isinstance(job.model, Program):
        return with_crop(job.model, recipe.crop_pct)
    found = resolve(job.model, weights=job.weights, image_size=job.image_size, ema=job.ema, say=say)
    return with_preprocessing(with_crop(found, recipe.crop_pct), job.model, job.preprocessing)


def _outputs(job: CompressJob, needs_bytes: int = 0) -> list[Output]:
    """Return what the training will write; a checkpoint holds the weights at least once, as float32."""
    cache = [] if job.teacher_cache is None else [Output(path=job.teacher_cache, option="--teacher-cache", kept=True)]
    return [Output(path=_folder(job), kept=True, needs_bytes=needs_bytes), *cache]


def _place(job: CompressJob, world: World) -> Place:
    return Place(folder=_folder(job), resume=job.resume, writes=world.main)


def _folder(job: CompressJob) -> Path:
    path = Path(job.model.spec.name if isinstance(job.model, Program) else job.model)
    name = path.resolve().parent.name if path.name == "program" else path.name.split(".")[0]
    return job.output or Path("out") / f"{name}-compressed"


def _with_classes(job: CompressJob, program: Program) -> Program:
    """Return the model with the classes that were asked for."""
    if job.classes is None:
        return program
    if job.new_head:
        raise TrainingError("--classes keeps rows of the model's own classifier, --new-head starts another; give one")
    return keep_classes(program, read_classes(job.classes, program.spec))


def _recipe(job: CompressJob) -> TrainRecipe:
    """Return the file's recipe with what the command line says instead."""
    recipe = load_recipe(job.recipe)
    recipe = replace(
        recipe,
        groups=recipe.groups if job.groups is None else job.groups,
        seed=recipe.seed if job.seed is None else job.seed,
    )
    parse_groups(recipe.groups)
    return recipe


def _supervision(job: CompressJob, data: LabelledSet, recipe: TrainRecipe, say: Say) -> tuple[LabelledSet, TrainRecipe]:
    """Return the data that can be learned from, and the recipe for it: without labels only the teacher teaches."""
    if job.unlabelled or data.labels is None:
        if job.new_head:
            raise TrainingError(
                f"a new head needs labelled data, and {data.source} has no labels (or --unlabelled leaves them out); "
                "leave out --new-head"
            )
        if recipe.teacher < 1:
            say("training without labels: the given model's outputs are all that is followed (teacher = 1)")
        return replace(data, labels=None), replace(recipe, teacher=1.0)
    missing = int((data.labels == UNLABELLED).sum())
    if not missing or (recipe.teacher == 1 and not job.new_head):
        return data, recipe
    say(f"{missing} of {len(data)} images have no label and are left out; --unlabelled trains on all, without labels")
    return subset(data, np.flatnonzero(data.labels != UNLABELLED)), recipe


def _with_head(given: Program, data: LabelledSet) -> tuple[Program, LabelledSet]:
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


def _numbered(data: LabelledSet, spec: ProgramSpec, say: Say) -> LabelledSet:
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


def _measured(job: CompressJob, data: LabelledSet, spec: ProgramSpec, say: Say) -> LabelledSet | None:
    """Return what to measure top-1 on: what was asked for, or the test split of the data; None where it has none."""
    source = job.evaluation or job.data
    splits = open_data(source).splits if job.evaluation else data.splits
    split = next((name for name in ("val", "test") if name in splits), None)
    if split is None and job.evaluation is None:
        return None
    found = open_data(source, split)
    if found.labels is None or (data.labels is None and job.evaluation is None):
        return replace(found, labels=None)
    return _placed(found, spec, say if job.evaluation else _silent)


def _budgets(
    job: CompressJob,
    spec: ProgramSpec,
    recipe: TrainRecipe,
    target: Target,
    limit_bytes: int | None,
    merged: float,
    say: Say,
) -> Budgets:
    if merged < 1:
        say(f"merging tokens leaves {merged:.1%} of the MACs; pruning and gates pay the rest")
    if limit_bytes is None:
        return split_budget(job.macs, job.static, recipe.static_share, merged)
    static = static_for(spec, target, limit_bytes)
    if static == 1:
        say(f"warning: all of {spec.name} fits into {limit_bytes} bytes on {target.name}: nothing is pruned for memory")
    if job.static is not None:
        static = min(static, job.static)
    within = partial(fits, target=target, limit_bytes=limit_bytes)
    static = min(static, merged)
    return Budgets(expected=min(job.macs, static), static=static, merged=merged, fits=within)


def _result(work: _Work, program: Program, say: Say) -> Trained:
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


def _compare_memory(result: Trained, say: Say) -> None:
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


def _write(path: Path, text: str) -> None:
    try:
        strict_json.write_atomic(path, text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _silent(line: str) -> None:
    """Say nothing: the first process speaks for all."""
