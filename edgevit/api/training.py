"""Compress a model by training it on a data set: find the model and the data, train, and report what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgevit.api.targets import target as target_of
from edgevit.api.token_plan import Place, left_by, plan_tokens, shifts_of, without_merges
from edgevit.api.trained import PreparedTraining, Trained, compare_memory, evaluate_training
from edgevit.api.training_data import measured_on, numbered, silent, supervision, with_head
from edgevit.backends import backend
from edgevit.build.prediction import bound_bytes
from edgevit.build.preflight import Output, ready
from edgevit.compress.budgets import Budgets, split_budget
from edgevit.compress.gate.subgroups import parse_groups
from edgevit.compress.memory_budget import fits, parse_bytes, static_for
from edgevit.compress.training.device import device_of, use_threads
from edgevit.compress.training.distributed import World, join, leave, lost
from edgevit.compress.training.recipe import TrainRecipe, load_recipe, to_toml
from edgevit.compress.training.sets import open_data
from edgevit.compress.usdc.inputs import Training
from edgevit.compress.usdc.resume import RECIPE, RESULT, kept
from edgevit.compress.usdc.stages import with_crop
from edgevit.errors import OutputError, TrainingError
from edgevit.frontends.preprocessing import Preprocessing, with_preprocessing
from edgevit.frontends.resolve import resolve
from edgevit.pipeline import train as run_training
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import write_plan
from edgevit.schema.target import Target
from edgevit.tasks.classes import keep_classes, read_classes
from edgevit.util import strict_json
from edgevit.util.progress import Say


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


def run_compress(job: CompressJob, say: Say = lambda _: None) -> Trained | None:
    """Train as `job` asks; under `torchrun` every process calls this, and all but the first return None.

    Raises:
        EdgevitError: see `edgevit.errors`; what was finished of the training can be resumed.
    """
    ready(_outputs(job))
    use_threads(job.threads)
    world = join()
    say = say if world.main else silent
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
    result = evaluate_training(work, program, say)
    compare_memory(result, say)
    _write(work.training.folder / RECIPE, to_toml(work.training.recipe))
    _write(work.training.folder / RESULT, strict_json.dumps(result))
    return result


def _prepared(job: CompressJob, world: World, say: Say) -> PreparedTraining:
    """Look at every input; nothing slow is begun."""
    recipe, target, device = _recipe(job), target_of(job.target), device_of(job.device)
    given = _with_classes(job, _found(job, recipe, say))
    data = open_data(job.data, "train")
    data, recipe = supervision(data, recipe, say, unlabelled=job.unlabelled, new_head=job.new_head)
    plan = plan_tokens(job.tokens, given, data, job.macs**recipe.token_share, _place(job, world), say)
    if given.spec.merges and given.spec.original is not None:
        say(
            f"{given.spec.name} merges tokens already: with all its tokens it is what trains and is followed; if its "
            f"weights were fitted to merging, train the original instead, with --tokens {write_plan(given.spec)}"
        )
    given = without_merges(given)
    dense, data = with_head(given, data) if job.new_head else (given, numbered(data, given.spec, say))
    measured = measured_on(data, dense.spec, job.data, job.evaluation, say)
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
    return PreparedTraining(
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


def _write(path: Path, text: str) -> None:
    try:
        strict_json.write_atomic(path, text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
