"""The stages and their order; the only file that knows it.

compress  Program -> statistics -> scores -> plan -> shrink -> repair -> gates, or merged tokens -> Program
train     Program -> head -> gates and masks -> joint -> prune -> recover -> thresholds -> fold -> Program
build     Program -> ranges -> quantization plan -> lower -> compile -> verify -> bound -> bundle
verify    coverage -> parity -> skip -> bound -> accuracy (`build.verify_build`)
profile   bundle -> images -> load -> golden outputs -> measurement (`devices`: a board has none of what this imports)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgevit import __version__
from edgevit.backends import Runner, Source, backend, desk
from edgevit.backends.reference import paired, reference, taps
from edgevit.backends.targets import accept_program
from edgevit.build.branch_errors import branch_errors
from edgevit.build.case import Case
from edgevit.build.describe import Facts, describe, golden_runs
from edgevit.build.points import PointTime, measure_points
from edgevit.build.preflight import check_limit, require_target, warn_of_memory
from edgevit.build.verify_build import verify_build
from edgevit.bundle.write import refuse_existing, write_bundle
from edgevit.compress.budgets import Budgets, check_label_free
from edgevit.images.image_set import ImageSet
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.onnx_form.check import check_model, check_size
from edgevit.program.macs import total_macs
from edgevit.program.original import evaluate, original_of, with_original
from edgevit.program.program import Program
from edgevit.program.token_plans import least_share, starts
from edgevit.program.tokens import read_plan, with_merges, write_plan
from edgevit.quantize.observe import Ranges, Run, observe
from edgevit.quantize.plan import plan_quantization
from edgevit.quantize.round import gptq_rounder
from edgevit.quantize.smooth import smooth
from edgevit.report import html as report_html
from edgevit.report import json as report_json
from edgevit.report.view import make_report
from edgevit.schema.manifest import BundleFile, Manifest
from edgevit.schema.manifest_file import MANIFEST, parse_manifest
from edgevit.schema.quant_plan import QuantPlan, attention_names
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target
from edgevit.util.atomic import scratch
from edgevit.util.progress import Say, track
from edgevit.util.threads import in_order, one_blas_thread
from edgevit.verify.pairs import Pairs

if TYPE_CHECKING:
    from edgevit.compress.usdc.inputs import Training

SCORED_IMAGES = 64
JUDGED_IMAGES = 48


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build` made: the bundle's folder and zip, its manifest, and what its operating points take here."""

    folder: Path
    archive: Path
    manifest: Manifest
    times: tuple[PointTime, ...] = ()


def compress(
    dense: Program,
    images: np.ndarray,
    budgets: Budgets,
    *,
    score: str = "divergence",
    seed: int = 0,
    say: Say = lambda _: None,
) -> Program:
    """Prune and gate a Program, or merge its tokens, without labels. Needs torch.

    Args:
        dense: the trained model.
        images: calibration images, uint8 `[n, height, width, 3]`.
        budgets: MACs that are left, as fractions of the dense model's; all 1 change nothing.
        score: how units are ranked, a name of `compress.prune.score.METHODS`.
        seed: of gate training.
        say: told where tokens are merged, and where few units leave a budget far from met.

    Raises:
        BudgetError: a budget that cannot be met, or is missed from above or below.
        RuntimeMissingError: torch is not installed.
    """
    if not budgets.compresses:
        return dense
    check_label_free(dense.spec, budgets)
    from edgevit.util.optional import require_torch

    require_torch("pruning, gating and the search for tokens to merge")
    if budgets.merges:
        return _merge(dense, images, budgets, score=score, say=say)
    from edgevit.compress.gate.train import train_gates

    program = _prune(dense, images, budgets, score=score, say=say) if budgets.prunes else dense
    if budgets.gates:
        left = min(1.0, budgets.expected * total_macs(dense.spec) / total_macs(program.spec))
        program = train_gates(program, images, left, teacher=dense, seed=seed, say=say)
    return with_original(program, original_of(dense, *_steps(budgets, len(images))))


def _prune(dense: Program, images: np.ndarray, budgets: Budgets, *, score: str, say: Say) -> Program:
    """Prune to `budgets.static` of the MACs."""
    from edgevit.compress.prune.observe import collect
    from edgevit.compress.prune.plan import check_reached, plan_prune, planned_spec
    from edgevit.compress.prune.refit import refit
    from edgevit.compress.prune.score import score_method
    from edgevit.compress.prune.shrink import shrink

    statistics = collect(dense, images)
    scores = score_method(score)(dense, images[:SCORED_IMAGES], statistics)
    plan = plan_prune(scores, dense.spec, budgets.static)
    note = check_reached(dense.spec, planned_spec(dense.spec, plan), plan.budget_macs, total_macs(dense.spec))
    if note:
        say(f"warning: {note}")
    return refit(shrink(dense, plan, statistics), dense, images)


def _merge(dense: Program, images: np.ndarray, budgets: Budgets, *, score: str, say: Say) -> Program:
    """Merge tokens down to `budgets.merged` of the MACs, prune first what merging cannot reach, repair what is left."""
    from edgevit.compress.tokens.repair import repair
    from edgevit.compress.tokens.search import follow, search

    budget, program, steps = int(budgets.merged * total_macs(dense.spec)), dense, []
    reach = max(budgets.merged, least_share(dense.spec))
    if reach > budgets.merged:
        say(f"merging tokens is to leave {reach:.0%} of the MACs at least; pruning first")
        # What is left of the later branches saves less where tokens merge, so the first share may fall short.
        for share in (reach, (1 + reach) / 2, 1.0):
            pruned = Budgets(static=budgets.merged / share, expected=budgets.merged / share)
            program = _prune(dense, images, pruned, score=score, say=say)
            if total_macs(program.spec) <= budget or starts(program.spec, budget):
                break
        steps = _steps(pruned, len(images))
    if total_macs(program.spec) > budget:
        found = search(program, images, budget, reference=dense, say=say)
        repaired = repair(program.with_weights(found.shifts, found.spec), dense, images)
        program = repaired.program
        say(repaired.summary)
        if budgets.per_image is not False:
            always = budgets.per_image is True
            found = follow(program, images, budget, reference=dense, say=say, always=always).chosen
            program = program.with_weights(found.shifts, found.spec)
        steps += [f"{found.summary} (edgevit {__version__})", f"{repaired.summary} (edgevit {__version__})"]
    return with_original(program, original_of(dense, *steps))


def merge_tokens(program: Program, plan: str) -> Program:
    """Merge tokens of a Program where a plan such as `4:60,8:60` says, instead of where it does.

    Raises:
        BudgetError: the text is no plan, or one that the model does not allow.
    """
    spec = with_merges(program.spec, read_plan(plan, program.spec))
    step = f"tokens merged at {write_plan(spec)}, as asked (edgevit {__version__})"
    return with_original(program.with_weights({}, spec), original_of(program, step))


def _steps(budgets: Budgets, images: int) -> list[str]:
    """Return what is done to the dense model, a sentence each."""
    on = f"without labels, on {images} images (edgevit {__version__})"
    steps = [f"pruned by {1 - budgets.static:.0%} of its MACs {on}"] if budgets.prunes else []
    if budgets.gates:
        steps.append(f"gated to {budgets.expected / budgets.static:.0%} of the MACs left {on}")
    return steps


def train(job: Training, *, resume: bool = False, say: Say = lambda _: None) -> Program:
    """Prune and gate a Program by training it on a data set; write it to `folder`/program. Needs torch.

    Args:
        job: model, data, budgets and recipe; its budgets of 1 and 1 train the model as it is.
        resume: go on from the folder's checkpoint, as if the run had not stopped.
        say: told what a person should know.

    Raises:
        TrainingError: the data, the recipe or the state do not allow to go on; the last checkpoint stays.
        BudgetError: a budget below what has to stay, or a result far from what was asked for; no Program is written.
        OutputError: there is a run already (and `resume` is false), or the disk refuses.
    """
    from edgevit.compress.prune.plan import check_kinds
    from edgevit.compress.usdc.run import begin, finish
    from edgevit.compress.usdc.stages import (
        MEAN_IMAGES,
        fold_gates,
        measure_gates,
        prepare,
        prune_trained,
        set_thresholds,
    )

    dense_macs = total_macs(job.dense.spec)
    run = begin(job, resume=resume, say=say)
    images = run.held.images
    program = run.interrupted()
    if program is None:
        program = prepare(job.with_merges(run.dense_with_head()), job.budgets, images[:MEAN_IMAGES], job.recipe)
    if run.due("joint"):
        program = prune_trained(*run.stage("joint", program), say)
        if job.recipe.gates == "measured":
            program = measure_gates(program, dense_macs, job.budgets, run.gate_images())
    if run.due("recover"):
        model, hooks = run.stage("recover", program)
        program = model.to_program(hooks.settled(model.spec))
    program = set_thresholds(program, dense_macs, job.budgets, images, say)
    program = fold_gates(program, job.budgets, images)
    check_kinds(job.dense.spec, program.spec)
    return finish(run, program)


def compare(program: Program, original: Program, judged: ImageSet, *, both: bool = True) -> Program:
    """Let the original answer images in float and keep that in the Program, which is compared with it from then on.

    Args:
        program: what was made of the original.
        original: with the Program's image size and class numbers (`tasks.counterpart`).
        judged: images; labelled ones give top-1.
        both: whether the Program answers too, for the figures that are kept with it.
    """
    before = _logits(original, judged.images, "Asking the original")
    after = _logits(program, judged.images, "Asking the compressed model") if both else None
    said = evaluate(judged.source.name, judged.images, program.spec.image, before, after, judged.labels)
    return with_original(program, program.spec.original or original_of(original), said)


def _logits(program: Program, images: np.ndarray, description: str) -> np.ndarray:
    runner = reference(*detached(program))
    return np.concatenate([runner.run(image[None])[0] for image in track(images, description)])


def quantize(program: Program, target: Target, images: np.ndarray) -> tuple[Program, QuantPlan | None]:
    """Decide which Linears are int8 and how, from what flows through the float model on calibration images.

    Returns the Program to lower, which differs from the given one where scales were folded into it (smoothing) and
    where weights are on their int8 grid, and the plan; no plan if the target computes in float.
    """
    if not target.int8:
        return program, None
    with one_blas_thread():
        return _quantized(program, target, images)


def _quantized(program: Program, target: Target, images: np.ndarray) -> tuple[Program, QuantPlan]:
    """Return what `quantize` does, for a target with int8."""
    histogram = target.range_method == "percentile"
    ranges, floats = _observe(program, images, histogram=histogram)
    if target.smoothing > 0.0:
        program = smooth(program, ranges, target.smoothing)
        ranges, floats = _observe(program, images, histogram=histogram)
    rounded = gptq_rounder(program, ranges)
    judged = slice(None, None, max(len(images) // JUDGED_IMAGES, 1))
    shown = images[judged][:JUDGED_IMAGES]
    pairs: list[tuple[Pairs, ...] | None] = [None] * len(shown)
    if program.spec.merges:
        plain = paired(*detached(program, gating="open"))
        pairs = list(in_order(lambda image: plain(image[None], None)[1], shown))

    def logits(plan: QuantPlan | None) -> np.ndarray:
        # All gates open, and the float model's pairs of tokens: every Linear is judged, and neither a flipped gate nor
        # another pair among all but equal ones drowns what rounding costs.
        if plan is None:
            return floats[judged][:JUDGED_IMAGES]
        run = paired(*detached(rounded(plan), plan, gating="open"), exact=True)
        return np.concatenate(list(in_order(lambda i: run(shown[i][None], pairs[i])[0], range(len(shown)))))

    plan = plan_quantization(
        program,
        ranges,
        weight_bits=target.weight_bits,
        int16_products=target.int16_products,
        activations=target.activations,
        range_method=target.range_method,
        percentile=target.percentile,
        evaluate=logits,
    )
    attentions = attention_names(program.spec) if target.attention == "int8" else ()
    return rounded(plan), replace(plan, attentions=attentions)


def _observe(program: Program, images: np.ndarray, *, histogram: bool) -> tuple[Ranges, np.ndarray]:
    """Return ranges on the all-open path and, with gates, on the real one; and the all-open logits `[n, classes]`."""
    logits: list[np.ndarray] = []
    runs: list[Run] = [taps(*detached(program, gating="open", taps=True))]
    if program.spec.gated:
        runs.append(taps(*detached(program, gating="both", taps=True)))

    def told(outputs: Mapping[str, np.ndarray]) -> None:
        logits.append(outputs["logits"])

    shown = (image[None] for image in track(images, "Observing activations"))
    ranges = observe(program.spec, runs, shown, histogram=histogram, told=told)
    return ranges, np.concatenate(logits)


def build(
    program: Program,
    target: Target,
    calibration: ImageSet,
    folder: Path,
    *,
    recipe: Recipe,
    evaluation: ImageSet | None = None,
    max_drop: float | None = None,
    force: bool = False,
    say: Say = lambda _: None,
) -> Built:
    """Quantize, lower, compile, verify and bundle a Program for one target.

    Args:
        program: what to build; already compressed, and with its original's answers where these are known.
        target: the device.
        calibration: unlabelled images for ranges, paths and golden outputs.
        folder: where the bundle goes; `folder`.zip is written beside it.
        recipe: how the Program was made, for the manifest.
        evaluation: images for agreement and, if labelled, top-1 (None: the calibration images, which the claim says).
        max_drop: points that the bundle may lose there against the original model (None: no limit).
        force: replace an existing bundle.
        say: told what is being done, a line per stage.

    Raises:
        OutputError: the output exists, or cannot be written.
        ProgramError, TargetError: see `check_limit`.
        RuntimeMissingError: the target's runtime or a tool it compiles with is not installed.
        TargetError: nothing can be compiled for the target.
        VerificationError: a claim did not hold; its class says which.
    """
    refuse_existing(folder, force=force)
    require_target(target, recipe.tune_s)
    accept_program(target, program.spec)
    check_limit(program, target, evaluation, max_drop)
    check_size(program.spec, int8=target.int8)
    warn_of_memory(program, say)
    runtime = backend(target.backend)
    versions = runtime.versions()
    say("Quantizing")
    lowered, plan = quantize(program, target, calibration.images)
    say("Lowering")
    model = assemble(lowered, plan)
    check_model(model)
    errors = branch_errors(program, lowered, plan, calibration.images)
    with scratch() as staging:
        say(f"Compiling for {target.backend}")
        source = Source(program=lowered, plan=plan, model=model, target=target, tune_s=recipe.tune_s)
        names = runtime.build(source, staging)
        del source, lowered  # as large as the model once more, and of no use to those who verify it
        case = Case(
            program=program,
            target=target,
            plan=plan,
            model=model,
            runtime=runtime,
            folder=staging,
            calibration=calibration,
            evaluation=evaluation,
            max_drop=max_drop,
        )
        runner = _load(case)
        evidence = verify_build(case, runner, say)
        points = measure_points(case, runner, say, floats=evidence.floats)
        say("Writing the bundle")
        golden = golden_runs(
            runner, program.spec, calibration.images, chooser=reference(model) if case.elsewhere else runner
        )
        facts = Facts(
            case=case,
            recipe=recipe,
            versions=versions,
            evidence=evidence,
            golden=golden,
            errors=errors,
            points=points.measured,
        )
        built = _bundle(facts, {name: case.folder / name for name in names}, folder, force=force)
        return replace(built, times=points.times)


def _load(case: Case) -> Runner:
    """The compiled model; where nothing here can run it the lowered graph, whose outputs a device will be held to."""
    return case.load() if case.runnable else reference(case.model)


def _bundle(facts: Facts, files: dict[str, Path], folder: Path, *, force: bool) -> Built:
    """Write manifest, model, report and golden runs as one bundle."""
    manifest = describe(facts, files)
    # Budgets count the program that ships; all the files that there will be, its own among them, no page can list.
    shipped = tuple(BundleFile(path=name, bytes=path.stat().st_size, sha256="") for name, path in files.items())
    report = replace(make_report(replace(manifest, files=shipped)), files=())
    pages = {"report.json": report_json.render(report), "report.html": report_html.render(report)}
    asked = desk(manifest.backend)
    pages["runner/run.py"] = asked.runner_source()
    labels = facts.case.program.spec.labels
    archive = write_bundle(
        folder, manifest, {**files, **pages}, facts.golden, labels=labels, guide=asked.guide(), force=force
    )
    return Built(folder=folder, archive=archive, manifest=parse_manifest((folder / MANIFEST).read_bytes(), folder))
