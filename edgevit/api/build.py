"""One call of `edgevit build`: finds the model, the target and the images, then runs the pipeline on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.backends.targets import load_target
from edgevit.build.prediction import Prediction, predict
from edgevit.build.preflight import Output, ready
from edgevit.bundle.write import refuse_existing
from edgevit.compress.budgets import Budgets
from edgevit.errors import ImagesError, ProgramError
from edgevit.frontends.imagenet import SUBSETS, imagenet_names
from edgevit.frontends.preprocessing import Preprocessing, with_preprocessing
from edgevit.frontends.resolve import resolve, shipped_programs
from edgevit.frontends.stated import with_statements
from edgevit.images.calibration_checks import check_calibration, copies, shared_images, split_calibration
from edgevit.images.image_set import TESTED, ImageSet, left_out, load_images, number_labels
from edgevit.pipeline import Built, Say, build, check_limit, compare, compress
from edgevit.program.original import as_original, weights_digest, with_original
from edgevit.program.program import Program, is_program, save_program
from edgevit.program.program import refuse_existing as refuse_existing_program
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target
from edgevit.tasks.classes import keep_classes, read_classes
from edgevit.tasks.counterpart import fitting
from edgevit.util.resources import shipped
from edgevit.util.text import read_lines

DEFAULT_PROGRAM = "vit_tiny_gated"
MANY_IMAGES = 100
HOST = "host"  # a target's name: this machine
PRUNED_AT_MOST = 1.5  # share of the weights that goes for a share of the MACs


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a build was asked for, as the command line gives it; see `edgevit build --help`."""

    model: str | None
    target: str
    weights: Path | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    limit: int | None = None
    prune: float = 0.0
    gate: float = 1.0
    seed: int = 0
    tune_s: float = 0.0
    labels: Path | None = None
    classes: str | None = None
    output: Path | None = None
    save_program: Path | None = None
    force: bool = False
    preprocessing: Preprocessing = Preprocessing()
    original: str | None = None
    original_weights: Path | None = None
    max_drop: float | None = None
    ema: bool | None = None
    image_size: tuple[int, int] | None = None
    license: str | None = None
    credit: str | None = None
    replace_program: bool = False


def predict_build(job: Job, say: Say = lambda _: None) -> Prediction:
    """Predict what `run_build` would make."""
    target = _target(job)
    return predict(_given(job, say)[0], target, prune=job.prune, gate=job.gate)


def run_build(job: Job, say: Say = lambda _: None) -> Built:
    """Build the bundle that `job` asks for; every input is looked at before anything slow begins.

    Raises:
        EdgevitError: see `edgevit.errors`; nothing is left half-written.
    """
    target = _target(job, say)
    _ready_to_begin(job, target)
    given, kept = _given(job, say)
    given, original = _with_original(job, given, say)
    folder = job.output or Path("out") / f"{given.spec.name.split('.')[0]}-{target.name}"
    refuse_existing(folder, force=job.force)
    if job.save_program:
        refuse_existing_program(job.save_program, force=job.replace_program)
    ready(_outputs(job, folder, target, given), temporary_bytes=_least_bytes(job, target, given))
    images = _images(job, given, target, say)
    check_limit(given, target, images.judged, job.max_drop, given=original is not None)
    compressing = job.prune > 0.0 or job.gate < 1.0
    if compressing:
        say(f"compressing: prune {job.prune:.0%} of the MACs, gates at {job.gate:.0%}")
    left = Budgets(static=1 - job.prune, expected=(1 - job.prune) * job.gate)
    program = compress(given, images.calibration.images, left, seed=job.seed, say=say)
    if original is not None and images.judged is not None and program.spec.original is not None:
        program = compare(program, original, images.judged, both=job.save_program is not None)
    if job.save_program:
        save_program(program, job.save_program, storage="float16", force=job.replace_program)
    known = program.spec.original
    recipe = Recipe(
        model=given.spec.name,
        weights_sha256=weights_digest(given),
        prune=job.prune,
        gate=job.gate,
        seed=job.seed,
        calibration=images.calibration.source.name,
        calibration_images=len(images.calibration),
        calibration_sha256=images.calibration.digest,
        tune_s=job.tune_s,
        classes=kept,
        held_out=images.held_out,
        original=known.name if known else "",
        compression=known.steps if known else (),
        max_drop=job.max_drop,
    )
    return build(
        program,
        target,
        images.calibration,
        folder,
        recipe=recipe,
        evaluation=images.judged,
        max_drop=job.max_drop,
        force=job.force,
        say=say,
    )


def _target(job: Job, say: Say = lambda _: None) -> Target:
    """The target that was named; for `host` the fastest that this machine can build and run, and says which."""
    if job.target != HOST:
        return load_target(job.target)
    from edgevit.build.host import host_target

    target, why = host_target()
    say(f"building for {why}")
    return target


@dataclass(frozen=True, kw_only=True)
class _Images:
    """What calibrates and what judges (None: too few to hold any out); `held_out` of the calibration set judge."""

    calibration: ImageSet
    judged: ImageSet | None
    held_out: int


def _images(job: Job, program: Program, target: Target, say: Say) -> _Images:
    source = job.calibration or shipped("calibration") / "shipped.toml"
    calibration = load_images(source, program.spec.image, limit=job.limit, splits=("train",))
    if job.evaluation and not program.spec.head.decides:
        raise ImagesError(
            f"--eval is for top-1, and {program.spec.name} does not decide between classes; leave --eval away: it is "
            "judged by its scores on images held out of the calibration"
        )
    judged = _evaluation(job.evaluation, program, say) if job.evaluation else None
    for warned in filter(None, map(left_out, (calibration, *([judged] if judged else [])))):
        say(warned)
    if job.calibration is None:
        say(
            f"calibrating with the {len(calibration.images)} photographs that ship with edgevit: fine to try it; for "
            f"your own model pass --calibration with {MANY_IMAGES} to 300 images of your own"
        )
    held_out = 0
    if judged is None:
        calibration, judged = split_calibration(calibration)
        held_out = len(judged) if judged else 0
    else:
        if shared := shared_images(calibration, judged):
            say(f"warning: {shared} of {len(judged)} images of --eval are among those that calibrate: top-1 flatters")
        if again := copies(judged):
            say(f"warning: {again} of {len(judged)} images of --eval are copies of others, which count again")
    if target.int8 or job.prune or job.gate < 1.0:
        for doubt in check_calibration(calibration, program.spec.image):
            say(f"warning: {doubt}")
    return _Images(calibration=calibration, judged=judged, held_out=held_out)


def _with_original(job: Job, given: Program, say: Say) -> tuple[Program, Program | None]:
    """The model with what it is held against, and that model: itself, or what --original names (None: not at hand)."""
    if job.original is None:
        if job.original_weights is not None:
            raise ProgramError("--original-weights is the checkpoint of the model that --original names; give both")
        return given, None if given.spec.compressed else given
    size = (given.spec.image.height, given.spec.image.width)
    folder = is_program(Path(job.original)) or job.original in shipped_programs()
    found = resolve(job.original, weights=job.original_weights, image_size=None if folder else size)
    fitted, known = fitting(found, given), given.spec.original
    if known is not None and known.weights_sha256 in ("", weights_digest(found), weights_digest(fitted)):
        return given, fitted
    if known is not None:
        say(
            f"warning: {job.original} is not the model that {given.spec.name} was compressed from: its weights differ "
            f"from those of {known.name}"
        )
    return with_original(given, replace(as_original(fitted), steps=known.steps if known else ())), fitted


def _ready_to_begin(job: Job, target: Target) -> None:
    """Refuse what the command line, the disk and the installed tools rule out, before a checkpoint is read."""
    ready(_outputs(job, job.output, target), target=target, tune_s=job.tune_s)
    if job.output is not None:
        refuse_existing(job.output, force=job.force)


def _outputs(job: Job, folder: Path | None, target: Target, given: Program | None = None) -> list[Output]:
    """What the build will write, with the least it can take once the model is known."""
    size = 0 if given is None else _least_bytes(job, target, given)
    outputs = []
    if folder is not None:
        archive = folder.parent / f"{folder.name}.zip"
        outputs += [Output(path=folder, needs_bytes=size), Output(path=archive, folder=False, needs_bytes=size)]
    if job.save_program is not None:
        saved = 0 if given is None else 2 * _least_weights(job, given)  # fp16
        outputs.append(Output(path=job.save_program, option="--save-program", needs_bytes=saved))
    return outputs


def _least_bytes(job: Job, target: Target, given: Program) -> int:
    """What the model's files take at the very least: a byte a weight where all of them are int8."""
    return len(target.formats) * (1 if target.int8 else 4) * _least_weights(job, given)


def _least_weights(job: Job, given: Program) -> int:
    """Weights that are left at least: pruning counts MACs, of which attention's products have no weights."""
    return int(max(0.0, 1 - PRUNED_AT_MOST * job.prune) * sum(array.size for array in given.weights.values()))


def _given(job: Job, say: Say = lambda _: None) -> tuple[Program, tuple[int, ...]]:
    """The model, named and with the classes that were asked for, and the numbers of these (empty: all)."""
    model = job.model or DEFAULT_PROGRAM
    found = resolve(model, weights=job.weights, image_size=job.image_size, ema=job.ema, say=say)
    found = with_preprocessing(found, model, job.preprocessing)
    named = _labelled(with_statements(found, license=job.license, credit=job.credit), job.labels)
    if job.classes is None:
        return named, ()
    kept = read_classes(job.classes, named.spec)
    return keep_classes(named, kept), kept


def _labelled(program: Program, path: Path | None) -> Program:
    """The Program with the class names of a text file, one per line."""
    if path is None:
        return program
    if str(path) in SUBSETS and not path.exists():
        return _named(program, path, imagenet_names(str(path)))
    try:
        names = read_lines(path)
    except (OSError, ValueError) as error:
        raise ImagesError(
            f"{path} cannot be read as class names ({error}); give a text file, one name per line"
        ) from error
    return _named(program, path, names)


def _named(program: Program, path: Path, names: tuple[str, ...]) -> Program:
    if len(names) != program.spec.head.classes:
        raise ImagesError(
            f"{path} holds {len(names)} class names, but {program.spec.name} has {program.spec.head.classes} classes; "
            "give one name per line, in the order of the model's classes"
        )
    return program.with_weights({}, replace(program.spec, labels=names))


def _evaluation(source: Path, program: Program, say: Say) -> ImageSet:
    """Labelled images numbered as the model's classes; a source with splits gives its test images."""
    loaded = load_images(source, program.spec.image, labelled=True, splits=TESTED)
    return number_labels(loaded, program.spec, say)
