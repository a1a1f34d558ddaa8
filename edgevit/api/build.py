"""Build a bundle: find the model, the target and the images, then run the pipeline on them; or predict its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevit import pipeline
from edgevit.api.bundle import Bundle
from edgevit.api.images import Images, LabelledImages, take_images
from edgevit.api.label_free import Shares, shares
from edgevit.api.load import DEFAULT_PROGRAM, load_kept
from edgevit.backends import backend
from edgevit.backends.targets import accept, accept_program, following_costs, load_target
from edgevit.build import prediction
from edgevit.build.host import host_target
from edgevit.build.prediction import Prediction
from edgevit.build.preflight import Output, ready
from edgevit.bundle.write import refuse_existing
from edgevit.compress.budgets import Budgets
from edgevit.errors import BudgetError, ImagesError, ProgramError
from edgevit.frontends.preprocessing import Preprocessing
from edgevit.frontends.resolve import resolve, shipped_programs
from edgevit.images.calibration_checks import check_calibration, copies, shared_images, split_calibration
from edgevit.images.image_set import TESTED, ImageSet, left_out, number_labels
from edgevit.pipeline import Built, check_limit, compare
from edgevit.program.original import as_original, weights_digest, with_original
from edgevit.program.program import Program, is_program, save_program
from edgevit.program.program import refuse_existing as refuse_existing_program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import read_plan, with_merges
from edgevit.report.efforts import alike, effort_points
from edgevit.schema.budget import BUDGETS, check_budgets, read_budget
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target
from edgevit.tasks.counterpart import fitting
from edgevit.util.progress import say, warn
from edgevit.util.resources import shipped

__all__ = ["BUDGETS", "Built", "Job", "Prediction", "alike", "build", "check_budgets", "effort_points"]
__all__ += ["predict", "predict_build", "run_build"]

MANY_IMAGES = 100
HOST = "host"  # a target's name: this machine
PRUNED_AT_MOST = 1.5  # share of the weights that goes for a share of the MACs


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a build was asked for, as the command line gives it; see `edgevit build --help`.

    `prune` is the fraction of the MACs to remove, `gate` the expected MACs with gates as a fraction of what is left.
    `merge` is the fraction of the MACs that merging tokens is to leave, `tokens` a plan of merges by hand. `formats`
    are the model's files (none: as the target says), `budget` what the device allows, over what the target says.
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


def build(
    program: Program | str | Path,
    *,
    target: str | Path | Target = HOST,
    calibration: Images | None = None,
    evaluation: LabelledImages | None = None,
    macs: float = 1.0,
    static: float | None = None,
    tokens: str | None = None,
    seed: int = 0,
    tune_s: float = 0.0,
    original: str | Path | None = None,
    max_drop: float | None = None,
    output: str | Path | None = None,
    force: bool = False,
) -> Bundle:
    """Quantize, compile and verify a Program for a target, and return the bundle. Takes minutes.

    Args:
        program: what to build, or what `load` takes to find it.
        target: a name that `targets()` lists, the path of a TOML file, or "host": the fastest for this machine.
        calibration: 100 to 300 unlabelled images like those the device will see (default: the few that ship).
        evaluation: labelled images for top-1: a path, or an array and its class numbers `[n]`.
        macs: share of the MACs that is left, expected per image; below 1 the Program is compressed first.
        static: share that is left with every gate open (default: tokens are merged down to `macs`); see `compress`.
        tokens: where tokens are merged, by hand and instead of `macs`: "4:60,8:60" is 60 pairs each after the attention
            of blocks 4 and 8, counted from 1.
        seed: of gate training.
        tune_s: CPU seconds to search for faster kernels on this machine, for targets whose kernels are compiled.
        original: the model before compression, a Program folder or a name, to compare with.
        max_drop: fail if more points are lost against the original in float: of top-1, or without labels of agreement.
        output: the bundle's folder, with its .zip beside it (default: out/MODEL-TARGET).
        force: replace a bundle that is there.

    Raises:
        TargetError: no such target, or one that cannot be built here.
        ImagesError: images that cannot calibrate, or labels that do not fit.
        BudgetError: `macs` or `static` cannot be met.
        OutputError: the output is there already, or cannot be written.
        RuntimeMissingError: the target's runtime or torch is not installed.
        VerificationError: a claim about the build does not hold; its class says which.

    Example:
        >>> bundle = edgevit.build(program, target="my-board.toml", calibration="photos/", output="out/demo")
        >>> all(claim.held for claim in bundle.manifest.claims)
        True
        >>> bundle.run("photos/00.png").logits.shape
        (4,)
    """
    asked = shares(macs, static)
    built = run_build(
        Job(
            model=program if isinstance(program, Program) else str(program),
            target=target if isinstance(target, Target) else str(target),
            calibration=calibration,
            evaluation=evaluation,
            prune=asked.prune,
            gate=asked.gate,
            merge=asked.merge,
            tokens=tokens,
            seed=seed,
            tune_s=tune_s,
            original=None if original is None else str(original),
            max_drop=max_drop,
            output=None if output is None else Path(output),
            force=force,
        )
    )
    return Bundle(built.folder)


def predict(
    program: Program | str | Path,
    *,
    target: str | Path | Target = HOST,
    macs: float = 1.0,
    static: float | None = None,
    tokens: str | None = None,
) -> Prediction:
    """Predict size, MACs and memory bound of a build without calibrating or compiling; takes seconds.

    Args:
        program: what would be built, or what `load` takes to find it.
        target: as for `build`.
        macs: as for `build`.
        static: as for `build`.
        tokens: as for `build`.

    Raises:
        BudgetError: stem and head alone cost more than the budget.
        TargetError: no such target.
        RuntimeMissingError: the target's compiler alone knows what it will lay out, and is not installed.

    Example:
        >>> predicted = edgevit.predict(program, target="x86-64-onnxruntime", macs=0.5)
        >>> predicted.all_open_macs <= 0.5 * predicted.dense_macs
        True
    """
    asked = shares(macs, static)
    return predict_build(
        Job(
            model=program if isinstance(program, Program) else str(program),
            target=target if isinstance(target, Target) else str(target),
            prune=asked.prune,
            gate=asked.gate,
            merge=asked.merge,
            tokens=tokens,
        )
    )


def predict_build(job: Job) -> Prediction:
    """Predict what `run_build` would make."""
    given = _given(job)[0]
    target = _fitting_target(job, accept(_target(job)), given.spec)
    return prediction.predict(given, target, prune=job.prune, gate=job.gate, merge=job.merge, tokens=job.tokens)


def run_build(job: Job) -> Built:
    """Build the bundle that `job` asks for; every input is looked at before anything slow begins.

    Raises:
        EdgevitError: see `edgevit.errors`; nothing is left half-written.
    """
    target = _target(job)
    _ready_to_begin(job, target)
    given, kept = _given(job)
    target = _fitting_target(job, target, given.spec)
    given, original = _with_original(job, given)
    folder = job.output or Path("out") / f"{given.spec.name.split('.')[0]}-{target.name}"
    refuse_existing(folder, force=job.force)
    if job.save_program:
        refuse_existing_program(job.save_program, force=job.replace_program)
    ready(_outputs(job, folder, target, given), temporary_bytes=_least_bytes(job, target, given))
    images = _images(job, given, target)
    check_limit(given, target, images.judged, job.max_drop, given=original is not None)
    asked = Shares(prune=job.prune, gate=job.gate, merge=job.merge)
    if job.prune > 0.0 or job.gate < 1.0:
        left = 1 - job.prune
        say(f"compressing to {left * job.gate:.0%} of the MACs expected per image, {left:.0%} with every gate open")
    if job.merge < 1.0:
        say(f"looking for tokens to merge, down to {job.merge:.0%} of the MACs")
    budgets = _gainful(asked.budgets, target)
    program = pipeline.compress(given, images.calibration.images, budgets, seed=job.seed, say=say)
    if job.tokens is not None:
        program = pipeline.merge_tokens(program, job.tokens)
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
        macs=job.merge,
        tokens=job.tokens or "",
    )
    return pipeline.build(
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


def _fitting_target(job: Job, target: Target, spec: ProgramSpec) -> Target:
    """Return the target, for `host` another one if numbers of tokens that follow the image save no time on the fastest.

    Refuses a plan that the model does not allow, and merged tokens that the target cannot run; says what they cost.
    """
    if job.tokens is not None:
        if job.merge < 1.0:
            raise BudgetError("macs chooses where tokens are merged, and tokens says it; give one of them")
        spec = with_merges(spec, read_plan(job.tokens, spec))
    if job.target == HOST and not job.formats and following_costs(target, spec):
        target = _target(job, follows=True)
    accept_program(target, spec)
    if doubt := following_costs(target, spec):
        warn(doubt)
    return target


def _gainful(budgets: Budgets, target: Target) -> Budgets:
    """Return the budgets without what saves no time on the target: numbers of tokens that follow the image."""
    if not budgets.merges or not backend(target.backend).FOLLOWING_COSTS:
        return budgets
    say(f"every image is to merge as many: that the number follows the image saves no time with {target.name}")
    return replace(budgets, per_image=False)


def _target(job: Job, *, follows: bool = False) -> Target:
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
class _Images:
    """What calibrates and what judges (None: too few to hold any out); `held_out` of the calibration set judge."""

    calibration: ImageSet
    judged: ImageSet | None
    held_out: int


def _images(job: Job, program: Program, target: Target) -> _Images:
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
    return _Images(calibration=calibration, judged=judged, held_out=held_out)


def _with_original(job: Job, given: Program) -> tuple[Program, Program | None]:
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


def _ready_to_begin(job: Job, target: Target) -> None:
    """Refuse what the command line, the disk and the installed tools rule out, before a checkpoint is read."""
    ready(_outputs(job, job.output, target), target=target, tune_s=job.tune_s)
    if job.output is not None:
        refuse_existing(job.output, force=job.force)


def _outputs(job: Job, folder: Path | None, target: Target, given: Program | None = None) -> list[Output]:
    """Return what the build will write, with the least it can take once the model is known."""
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
    """Return the bytes that the model's files take at the least: a byte a weight where all of them are int8."""
    return len(target.formats) * (1 if target.int8 else 4) * _least_weights(job, given)


def _least_weights(job: Job, given: Program) -> int:
    """Return how many weights are left at least: pruning counts MACs, of which attention's products have no weights."""
    pruned = max(job.prune, 1 - job.merge)
    return int(max(0.0, 1 - PRUNED_AT_MOST * pruned) * sum(array.size for array in given.weights.values()))


def _given(job: Job) -> tuple[Program, tuple[int, ...]]:
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
