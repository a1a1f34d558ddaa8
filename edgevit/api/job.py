"""What a build is asked for, and what that names: the model, its original, the target, images, and files to write."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevit.api.images import Images, LabelledImages, take_images
from edgevit.api.label_free import Shares
from edgevit.api.load import DEFAULT_PROGRAM, load_kept
from edgevit.backends.targets import accept, accept_program, following_costs, load_target
from edgevit.build.host import HOST, host_target
from edgevit.build.preflight import Output
from edgevit.compress.budgets import check_label_free
from edgevit.errors import BudgetError, ImagesError, OutputError, ProgramError
from edgevit.frontends.preprocessing import Preprocessing
from edgevit.frontends.resolve import resolve, shipped_programs
from edgevit.images.calibration_checks import check_calibration, copies, shared_images, split_calibration
from edgevit.images.image_set import TESTED, ImageSet, left_out, number_labels
from edgevit.program.original import as_original, weights_digest, with_original
from edgevit.program.program import Program, is_program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import read_plan, with_merges, write_plan
from edgevit.schema.budget import read_budget
from edgevit.schema.target import Target
from edgevit.tasks.counterpart import fitting
from edgevit.util.progress import say, warn
from edgevit.util.resources import shipped

MANY_IMAGES = 100
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")
PRUNED_AT_MOST = 1.5  # share of the weights that goes for a share of the MACs


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a build was asked for, as the command line gives it; see `edgevit build --help`.

    `prune` is the fraction of the MACs to remove, `gate` the expected MACs with gates as a fraction of what is left.
    `merge` is the fraction of the MACs that merging tokens is to leave, `tokens` a plan of merges by hand. `formats`
    are the model's files (none: as the target says), `budget` what the device allows, over what the target says.
    `name` is what the bundle and its C library are called ("": as the model).
    """

    model: str | Program | None
    target: str | Target
    weights: Path | None = None
    calibration: Images | None = None
    evaluation: LabelledImages | None = None
    limit: int | None = None
    prune: float = 0.0
    gate: float = 1.0
    merge: float = 1.0
    tokens: str | None = None
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
    formats: tuple[str, ...] = ()
    budget: str | None = None
    name: str = ""


def fitting_target(job: Job, target: Target, spec: ProgramSpec) -> Target:
    """Return the target, for `host` another one if numbers of tokens that follow the image save no time on the fastest.

    Refuses a plan that the model does not allow, and merged tokens that the target cannot run; says what they cost.
    """
    check_label_free(spec, Shares(prune=job.prune, gate=job.gate, merge=job.merge).budgets)
    if job.tokens is not None:
        if job.merge < 1.0:
            raise BudgetError("macs chooses where tokens are merged, and tokens says it; give one of them")
        spec = _planned(job.tokens, spec)
    if job.target == HOST and not job.formats and following_costs(target, spec):
        target = target_of(job, follows=True)
    accept_program(target, spec)
    if doubt := following_costs(target, spec):
        warn(doubt)
    return target


def _planned(plan: str, spec: ProgramSpec) -> ProgramSpec:
    """Return the spec with the points of a plan by hand; says which point does nothing, and what it replaces."""
    planned = with_merges(spec, read_plan(plan, spec))
    for number, point in zip(plan.split(","), planned.merges, strict=True):
        if point.threshold is not None and abs(point.threshold) > 1:
            many = "none" if point.threshold > 1 else "all that may"
            warn(
                f"tokens merge at {number.strip()}, and no cosine is beyond -1 to 1: as calibrated {many} merge there. "
                "Thresholds that a build chose by itself are of a score of its own, which a plan by hand does not have"
            )
    if spec.merges:
        say(
            f"tokens of {spec.name} merge at {plan} instead of {write_plan(spec)}; weights that were fitted to the "
            "plan it had stay fitted to that"
        )
    return planned


def target_of(job: Job, *, follows: bool = False) -> Target:
    """Return the target that was named, with the job's own formats and budget."""
    target = _named_target(job, follows)
    if job.budget is not None:
        budgets: dict[str, Any] = {**read_budget(job.budget)}
        target = replace(target, **budgets)
    return accept(replace(target, formats=job.formats)) if job.formats else target


def _named_target(job: Job, follows: bool) -> Target:
    """Return the target that was named; for `host` the fastest that this machine can build and run, and says which."""
    if isinstance(job.target, Target):
        return job.target
    if job.target != HOST:
        return load_target(job.target)
    target, why = host_target(follows=follows)
    say(f"building for {why}")
    return target


@dataclass(frozen=True, kw_only=True)
class BuildImages:
    """What calibrates and what judges (None: too few to hold any out); `held_out` of the calibration set judge."""

    calibration: ImageSet
    judged: ImageSet | None
    held_out: int


def images_of(job: Job, program: Program, target: Target) -> BuildImages:
    """Return the images that calibrate and those that judge, and say what is to be doubted about them.

    Raises:
        ImagesError: none that can be used, or labels of a model that does not decide between classes.
    """
    source = shipped("calibration") / "shipped.toml" if job.calibration is None else job.calibration
    calibration = take_images(source, program.spec.image, limit=job.limit, splits=("train",))
    if job.evaluation is not None and not program.spec.head.decides:
        raise ImagesError(
            f"--eval is for top-1, and {program.spec.name} does not decide between classes; omit --eval: it is "
            "judged by its scores on images held out of the calibration"
        )
    judged = None if job.evaluation is None else _evaluation(job.evaluation, program)
    for warned in filter(None, map(left_out, (calibration, *([judged] if judged else [])))):
        say(warned)
    if job.calibration is None:
        say(
            f"calibrating with the {len(calibration.images)} photographs that ship with edgevit: fine for a trial run; "
            f"for your own model pass --calibration with {MANY_IMAGES} to 300 images of your own"
        )
    held_out = 0
    if judged is None:
        calibration, judged = split_calibration(calibration)
        held_out = len(judged) if judged else 0
    else:
        if shared := shared_images(calibration, judged):
            warn(f"{shared} of {len(judged)} images of --eval are among those that calibrate: top-1 flatters")
        if again := copies(judged):
            warn(f"{again} of {len(judged)} images of --eval are copies of others, which count again")
    if target.int8 or job.prune or job.gate < 1.0 or job.merge < 1.0:
        for doubt in check_calibration(calibration, program.spec.image):
            warn(doubt)
    return BuildImages(calibration=calibration, judged=judged, held_out=held_out)


def beside_original(job: Job, given: Program) -> tuple[Program, Program | None]:
    """Return the model with what it is held against, and that: itself, or what --original names (None: not at hand)."""
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
        warn(
            f"{job.original} is not the model that {given.spec.name} was compressed from: its weights differ "
            f"from those of {known.name}"
        )
    return with_original(given, replace(as_original(fitted), steps=known.steps if known else ())), fitted


def named(job: Job, program: Program) -> Program:
    """Return a Program under the name that was asked for: what is built of it, bundle and C library, is called so.

    Raises:
        OutputError: it is no name that a folder and the functions of a C library can have.
    """
    check_name(job)
    return replace(program, spec=replace(program.spec, name=job.name)) if job.name else program


def check_name(job: Job) -> None:
    """Refuse a name that a folder and the functions of a C library cannot have."""
    if job.name and not NAME.fullmatch(job.name):
        raise OutputError(
            f"{job.name!r} cannot be the name of a bundle and of its C library; allowed: a letter, then letters, "
            "'_' and '-', 48 in all"
        )


def outputs_of(job: Job, folder: Path | None, target: Target, given: Program | None = None) -> list[Output]:
    """Return what the build will write, with the least it can take once the model is known."""
    size = 0 if given is None else least_bytes(job, target, given)
    outputs = []
    if folder is not None:
        archive = folder.parent / f"{folder.name}.zip"
        outputs += [Output(path=folder, needs_bytes=size), Output(path=archive, folder=False, needs_bytes=size)]
    if job.save_program is not None:
        saved = 0 if given is None else 2 * _least_weights(job, given)  # fp16
        outputs.append(Output(path=job.save_program, option="--save-program", needs_bytes=saved))
    return outputs


def least_bytes(job: Job, target: Target, given: Program) -> int:
    """Return the bytes that the model's files take at the least: a byte a weight where all of them are int8."""
    return len(target.formats) * (1 if target.int8 else 4) * _least_weights(job, given)


def _least_weights(job: Job, given: Program) -> int:
    """Return how many weights are left at least: pruning counts MACs, of which attention's products have no weights."""
    pruned = max(job.prune, 1 - job.merge)
    return int(max(0.0, 1 - PRUNED_AT_MOST * pruned) * sum(array.size for array in given.weights.values()))


def given_of(job: Job) -> tuple[Program, tuple[int, ...]]:
    """Return the model, named and with the classes that were asked for, and the numbers of these (empty: all)."""
    return load_kept(
        DEFAULT_PROGRAM if job.model is None else job.model,
        weights=job.weights,
        image_size=job.image_size,
        ema=job.ema,
        preprocessing=job.preprocessing,
        labels=job.labels,
        classes=job.classes,
        license=job.license,
        credit=job.credit,
    )


def _evaluation(source: LabelledImages, program: Program) -> ImageSet:
    """Return labelled images numbered as the model's classes; a source with splits gives its test images."""
    loaded = take_images(source, program.spec.image, labelled=True, splits=TESTED)
    return number_labels(loaded, program.spec, say)
