"""Build a bundle: find the model, the target and the images, then run the pipeline on them; or predict its cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgevit import pipeline
from edgevit.api.bundle import Bundle
from edgevit.api.images import Images, LabelledImages
from edgevit.api.job import (
    Job,
    beside_original,
    check_name,
    fitting_target,
    given_of,
    images_of,
    least_bytes,
    named,
    outputs_of,
    target_of,
)
from edgevit.api.label_free import Shares, shares
from edgevit.backends import backend
from edgevit.backends.targets import accept
from edgevit.build import prediction
from edgevit.build.host import HOST
from edgevit.build.prediction import Prediction
from edgevit.build.preflight import check_limit, ready
from edgevit.bundle.write import refuse_existing
from edgevit.compress.budgets import Budgets
from edgevit.pipeline import Built, compare
from edgevit.program.original import weights_digest
from edgevit.program.program import Program, save_program
from edgevit.program.program import refuse_existing as refuse_existing_program
from edgevit.report.efforts import alike, effort_points
from edgevit.schema.budget import BUDGETS, check_budgets
from edgevit.schema.points import effort_text
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target
from edgevit.util.progress import say

__all__ = ["BUDGETS", "Built", "Job", "Prediction", "alike", "build", "check_budgets", "effort_points"]
__all__ += ["effort_text", "predict", "predict_build", "run_build"]


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
    name: str = "",
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
        name: what the bundle is called, and the functions of its C library: of two models of one architecture in one
            program each needs its own (default: the model's name).
        output: the bundle's folder, with its .zip beside it (default: out/NAME-TARGET).
        force: replace a bundle that is there.

    Raises:
        TargetError: no such target, or one that cannot be built here.
        ImagesError: images that cannot calibrate, or labels that do not fit.
        BudgetError: `macs` or `static` cannot be met.
        OutputError: the output is there already, or cannot be written; or the name cannot be one.
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
            name=name,
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
    given = given_of(job)[0]
    target = fitting_target(job, accept(target_of(job)), given.spec)
    return prediction.predict(given, target, prune=job.prune, gate=job.gate, merge=job.merge, tokens=job.tokens)


def run_build(job: Job) -> Built:
    """Build the bundle that `job` asks for; every input is looked at before anything slow begins.

    Raises:
        EdgevitError: see `edgevit.errors`; nothing is left half-written.
    """
    target = target_of(job)
    _ready_to_begin(job, target)
    given, kept = given_of(job)
    target = fitting_target(job, target, given.spec)
    given, original = beside_original(job, given)
    folder = job.output or Path("out") / f"{job.name or given.spec.name.split('.')[0]}-{target.name}"
    refuse_existing(folder, force=job.force)
    if job.save_program:
        refuse_existing_program(job.save_program, force=job.replace_program)
    ready(outputs_of(job, folder, target, given), temporary_bytes=least_bytes(job, target, given))
    images = images_of(job, given, target)
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
        named(job, program),
        target,
        images.calibration,
        folder,
        recipe=recipe,
        evaluation=images.judged,
        max_drop=job.max_drop,
        force=job.force,
        say=say,
    )


def _gainful(budgets: Budgets, target: Target) -> Budgets:
    """Return the budgets without what saves no time on the target: numbers of tokens that follow the image."""
    if not budgets.merges or not backend(target.backend).FOLLOWING_COSTS:
        return budgets
    say(f"every image is to merge as many: that the number follows the image saves no time with {target.name}")
    return replace(budgets, per_image=False)


def _ready_to_begin(job: Job, target: Target) -> None:
    """Refuse what the command line, the disk and the installed tools rule out, before a checkpoint is read."""
    check_name(job)
    ready(outputs_of(job, job.output, target), target=target, tune_s=job.tune_s)
    if job.output is not None:
        refuse_existing(job.output, force=job.force)
