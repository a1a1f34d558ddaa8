"""One call of `edgevit build`: finds the model, the target and the images, then runs the pipeline on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundle.write import refuse_existing
from edgevit.data.images import TESTED, ImageSet, load_images, number_labels
from edgevit.errors import ImagesError, OutputError, TargetError
from edgevit.models.classes import keep_classes, read_classes
from edgevit.models.program import Program, save_program
from edgevit.models.resolve import resolve
from edgevit.pipeline import Built, Say, build, compress, weights_digest
from edgevit.predict import Prediction, predict
from edgevit.recipe import Recipe
from edgevit.resources import shipped
from edgevit.targets import load_target

DEFAULT_PROGRAM = "vit_tiny_gated"
MANY_IMAGES = 100


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


def predict_build(job: Job) -> Prediction:
    """Predict what `run_build` would make."""
    target = load_target(job.target)
    return predict(_given(job)[0], target, prune=job.prune, gate=job.gate)


def run_build(job: Job, say: Say = lambda _: None) -> Built:
    """Build the bundle that `job` asks for; every input is looked at before anything slow begins.

    Raises:
        EdgevitError: see `edgevit.errors`; nothing is left half-written.
    """
    target = load_target(job.target)
    if job.tune_s and target.backend != "tvm":
        raise TargetError(f"{target.name} runs on {target.backend}, which has no tiles to search; leave --tune away")
    given, kept = _given(job)
    folder = job.output or Path("out") / f"{given.spec.name.split('.')[0]}-{target.name}"
    refuse_existing(folder, force=job.force)
    if job.save_program and job.save_program.exists() and not job.force:
        raise OutputError(f"{job.save_program} exists already; choose another folder or pass --force to replace it")
    source = job.calibration or shipped("calibration") / "shipped.toml"
    calibration = load_images(source, given.spec.image, limit=job.limit, splits=("train",))
    evaluation = _evaluation(job.evaluation, given) if job.evaluation else None
    if job.calibration is None:
        say(
            f"calibrating with the {len(calibration.images)} photographs that ship with edgevit: fine to try it; for "
            f"your own model pass --calibration with {MANY_IMAGES} to 300 images of your own"
        )
    compressing = job.prune > 0.0 or job.gate < 1.0
    if compressing:
        say(f"compressing: prune {job.prune:.0%} of the MACs, gates at {job.gate:.0%}")
    program = compress(given, calibration.images, prune=job.prune, gate=job.gate, seed=job.seed)
    if job.save_program:
        save_program(program, job.save_program, storage="float16", force=job.force)
    recipe = Recipe(
        model=given.spec.name,
        weights_sha256=weights_digest(given),
        prune=job.prune,
        gate=job.gate,
        seed=job.seed,
        calibration=source.name,
        calibration_images=len(calibration.images),
        calibration_sha256=calibration.digest,
        tune_s=job.tune_s,
        classes=kept,
    )
    return build(
        program,
        target,
        calibration,
        folder,
        recipe=recipe,
        dense=given if compressing else None,
        evaluation=evaluation,
        force=job.force,
        say=say,
    )


def _given(job: Job) -> tuple[Program, tuple[int, ...]]:
    """The model, named and with the classes that were asked for, and the numbers of these (empty: all)."""
    named = _labelled(resolve(job.model or DEFAULT_PROGRAM, weights=job.weights), job.labels)
    if job.classes is None:
        return named, ()
    kept = read_classes(job.classes, named.spec)
    return keep_classes(named, kept), kept


def _labelled(program: Program, path: Path | None) -> Program:
    """The Program with the class names of a text file, one per line."""
    if path is None:
        return program
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ImagesError(
            f"{path} cannot be read as class names ({error}); give a text file, one name per line"
        ) from error
    if len(names) != program.spec.head.classes:
        raise ImagesError(
            f"{path} holds {len(names)} class names, but {program.spec.name} has {program.spec.head.classes} classes; "
            "give one name per line, in the order of the model's classes"
        )
    return program.with_weights({}, replace(program.spec, labels=names))


def _evaluation(source: Path, program: Program) -> ImageSet:
    """Labelled images numbered as the model's classes; a source with splits gives its test images."""
    head = program.spec.head
    if not head.linear or head.classes == 1:
        gives = "one score" if head.linear else "features, no classes"
        raise ImagesError(f"{program.spec.name} gives {gives}, so labels say nothing about it; leave --eval away")
    loaded = load_images(source, program.spec.image, labelled=True, splits=TESTED)
    return number_labels(loaded, program.spec)
