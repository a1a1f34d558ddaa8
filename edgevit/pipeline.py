"""The stages and their order; the only file that knows it.

compress  Program -> statistics -> scores -> plan -> shrink -> repair -> gates -> Program
build     Program -> ranges -> quantization plan -> lower -> compile -> verify -> bound -> bundle
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgevit.backends import Runner, Source, backend
from edgevit.backends.reference import reference, taps
from edgevit.bundle.write import refuse_existing, write_bundle
from edgevit.bundlespec import Manifest
from edgevit.data.images import ImageSet
from edgevit.facts import Facts, describe, golden_runs
from edgevit.lower.assemble import assemble, detached
from edgevit.lower.check import check_model, check_size
from edgevit.models.program import Program
from edgevit.progress import track
from edgevit.proof import Case, prove
from edgevit.quantize.observe import Ranges, Run, observe
from edgevit.quantize.plan import plan_quantization
from edgevit.quantize.round import rounder
from edgevit.quantize.smooth import smooth
from edgevit.quantspec import QuantPlan, attention_names
from edgevit.recipe import Recipe
from edgevit.report import html as report_html
from edgevit.report import json as report_json
from edgevit.report.view import make_report
from edgevit.targets import Target

Say = Callable[[str], None]
SCORED_IMAGES = 64
JUDGED_IMAGES = 48
# Most memory that a build takes: so many times its float weights, and Python with its libraries
# (reports/reference/build-cost.md).
PEAK_PER_FLOAT, PEAK_BESIDE_BYTES = 6.5, 500_000_000


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build` made: the bundle's folder and zip, and its manifest."""

    folder: Path
    archive: Path
    manifest: Manifest


def compress(dense: Program, images: np.ndarray, *, prune: float = 0.0, gate: float = 1.0, seed: int = 0) -> Program:
    """Prune and gate a Program without labels. Needs torch.

    Args:
        dense: the trained model.
        images: calibration images, uint8 `[n, height, width, 3]`.
        prune: fraction of the MACs to remove.
        gate: expected MACs with gates as a fraction of the pruned model's; 1 attaches none.
        seed: of gate training.

    Raises:
        BudgetError: a budget that cannot be met.
        RuntimeMissingError: torch is not installed.
    """
    if prune == 0.0 and gate == 1.0:
        return dense
    from edgevit.torchside import require_torch

    require_torch("pruning and gating")
    from edgevit.gate.train import train_gates
    from edgevit.prune.observe import collect
    from edgevit.prune.plan import plan_prune
    from edgevit.prune.refit import refit
    from edgevit.prune.score import score
    from edgevit.prune.shrink import shrink

    program = dense
    if prune > 0.0:
        statistics = collect(dense, images)
        scores = score(dense, images[:SCORED_IMAGES], statistics)
        plan = plan_prune(scores, dense.spec, prune)
        program = refit(shrink(dense, plan, statistics), dense, images)
    if gate < 1.0:
        program = train_gates(program, images, gate, teacher=dense, seed=seed)
    return program


def quantize(program: Program, target: Target, images: np.ndarray) -> tuple[Program, QuantPlan | None]:
    """Decide which Linears are int8 and how, from what flows through the float model on calibration images.

    Returns the Program to lower, which differs from the given one where scales were folded into it (smoothing) and
    where weights are on their int8 grid, and the plan; no plan if the target computes in float.
    """
    if not target.int8:
        return program, None
    ranges, floats = _observe(program, images)
    if target.smoothing > 0.0:
        program = smooth(program, ranges, target.smoothing)
        ranges, floats = _observe(program, images)
    rounded = rounder(program, ranges)
    judged = slice(None, None, max(len(images) // JUDGED_IMAGES, 1))

    def logits(plan: QuantPlan | None) -> np.ndarray:
        # All gates open: every Linear is judged, and a flipped gate does not drown what rounding costs.
        if plan is None:
            return floats[judged][:JUDGED_IMAGES]
        runner = reference(*detached(rounded(plan), plan, gating="open"), exact=True)
        return np.concatenate([runner.run(image[None])[0] for image in images[judged][:JUDGED_IMAGES]])

    plan = plan_quantization(
        program,
        ranges,
        weight_bits=target.weight_bits,
        activations=target.activations,
        range_method=target.range_method,
        percentile=target.percentile,
        evaluate=logits,
    )
    attentions = attention_names(program.spec) if target.attention == "int8" else ()
    return rounded(plan), replace(plan, attentions=attentions)


def _observe(program: Program, images: np.ndarray) -> tuple[Ranges, np.ndarray]:
    """Ranges on the all-open path and, with gates, on the real one; and the all-open logits `[n, classes]`."""
    all_open = taps(*detached(program, gating="open", taps=True))
    logits = []

    def watched(image: np.ndarray) -> Mapping[str, np.ndarray]:
        outputs = all_open(image)
        logits.append(outputs["logits"])
        return outputs

    runs: list[Run] = [watched]
    if program.spec.gated:
        runs.append(taps(*detached(program, gating="both", taps=True)))
    ranges = observe(program.spec, runs, (image[None] for image in track(images, "Observing activations")))
    return ranges, np.concatenate(logits)


def build(
    program: Program,
    target: Target,
    calibration: ImageSet,
    folder: Path,
    *,
    recipe: Recipe,
    dense: Program | None = None,
    evaluation: ImageSet | None = None,
    force: bool = False,
    say: Say = lambda _: None,
) -> Built:
    """Quantize, lower, compile, verify and bundle a Program for one target.

    Args:
        program: what to build; already compressed.
        target: the device.
        calibration: unlabelled images for ranges, agreement and golden outputs.
        folder: where the bundle goes; `folder`.zip is written beside it.
        recipe: how the Program was made, for the manifest.
        dense: the model before compression, for the accuracy rows.
        evaluation: labelled images for top-1.
        force: replace an existing bundle.
        say: told what is being done, a line per stage.

    Raises:
        OutputError: the output exists, or cannot be written.
        VerificationError: a claim did not hold; its class says which.
    """
    refuse_existing(folder, force=force)
    check_size(program.spec, int8=target.int8)
    _warn_of_memory(program, say)
    runtime = backend(target.backend)
    versions = runtime.versions()
    say("Quantizing")
    lowered, plan = quantize(program, target, calibration.images)
    say("Lowering")
    model = assemble(lowered, plan)
    check_model(model)
    with tempfile.TemporaryDirectory(prefix="edgevit.") as staging:
        say(f"Compiling for {target.backend}")
        source = Source(program=lowered, plan=plan, model=model, target=target, tune_s=recipe.tune_s)
        names = runtime.build(source, Path(staging))
        del source, lowered  # as large as the model once more, and of no use to those who verify it
        case = Case(
            program=program,
            dense=dense,
            target=target,
            plan=plan,
            model=model,
            runtime=runtime,
            folder=Path(staging),
            calibration=calibration,
            evaluation=evaluation,
        )
        runner = _load(case)
        evidence = prove(case, runner, say)
        say("Writing the bundle")
        golden = golden_runs(
            runner, program.spec, calibration.images, chooser=reference(model) if case.elsewhere else runner
        )
        facts = Facts(case=case, recipe=recipe, versions=versions, evidence=evidence, golden=golden)
        return _bundle(facts, {name: case.folder / name for name in names}, folder, force=force)


def _warn_of_memory(program: Program, say: Say) -> None:
    """Say so before it begins where the build needs more memory than there is."""
    floats = sum(array.nbytes for array in program.weights.values())
    needed = PEAK_PER_FLOAT * floats + PEAK_BESIDE_BYTES
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        say(
            f"warning: {program.spec.name} has {floats} bytes of float weights, and its build takes about "
            f"{needed / 1e9:.1f} GB of memory; this machine has {present / 1e9:.1f} GB, so the system may end it. "
            "Prune the model first, or build where there is more"
        )


def _load(case: Case) -> Runner:
    """The compiled model; where nothing here can run it the lowered graph, whose outputs a device will be held to."""
    if not case.runnable:
        return reference(case.model)
    target = case.target
    return case.runtime.load(
        case.folder, threads=target.threads, precision=target.inference_precision, weight_bits=target.weight_bits
    )


def _bundle(facts: Facts, files: dict[str, Path], folder: Path, *, force: bool) -> Built:
    """Write manifest, model, report and golden runs as one bundle."""
    manifest = describe(facts, files)
    report = make_report(manifest)
    pages = {"report.json": report_json.render(report), "report.html": report_html.render(report)}
    labels = facts.case.program.spec.labels
    archive = write_bundle(folder, manifest, {**files, **pages}, facts.golden, labels=labels, force=force)
    return Built(folder=folder, archive=archive, manifest=manifest)


def weights_digest(program: Program) -> str:
    """sha256 over names, shapes and values of a Program's arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(program.weights.items()):
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
