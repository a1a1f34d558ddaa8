"""The manifest of a build: what stands in it, taken from the Program, the plan and the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit import __version__
from edgevit.backends import Runner, backend
from edgevit.build.case import Case
from edgevit.build.verify_build import Evidence
from edgevit.bundle.write import GoldenRun
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.original import uncompressed, without_answers
from edgevit.program.program import expected_shapes
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import MERGE_EFFORT, merge_branches
from edgevit.schema.claims import Claim, ParityFigures
from edgevit.schema.manifest import (
    EFFORT_ALL_OPEN,
    EFFORT_ALL_SKIPPED,
    BranchFacts,
    EffortContract,
    InputContract,
    Macs,
    Manifest,
    OutputContract,
    PathName,
    Sizes,
)
from edgevit.schema.points import OperatingPoint
from edgevit.schema.recipe import Recipe
from edgevit.verify.skip import skipped_macs

GOLDEN_CANDIDATES = 32
GOLDEN_MARGIN = 0.05  # a golden image's gates stay as they are when every logit moves by this much
NEAR = (-GOLDEN_MARGIN, 0.0, GOLDEN_MARGIN)
# Of the logits' deviation: what golden outputs may differ by whatever the kernels, and what they may at most.
GOLDEN_TOLERANCE, GOLDEN_LIMIT = 0.25, 1.0
# Of the largest difference that parity found between the kernels here and the same graph as written: a third way to
# round, another CPU's, lies as far from both, and its golden image need not be the mildest of those.
KERNEL_SPREAD = 1.5


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything a manifest is made of."""

    case: Case
    recipe: Recipe
    versions: Mapping[str, str]
    evidence: Evidence
    golden: Sequence[GoldenRun]
    errors: Sequence[float | None] = ()
    points: Sequence[OperatingPoint] = ()


def describe(facts: Facts, files: Mapping[str, Path]) -> Manifest:
    """Return the manifest, but for what only the writer knows (hashes, golden file names)."""
    spec, evidence = facts.case.program.spec, facts.evidence
    models = _models(facts.case.target.backend, tuple(files))
    return Manifest(
        name=f"{spec.name}-{facts.case.target.name}",
        backend=facts.case.target.backend,
        target=facts.case.target,
        recipe=facts.recipe,
        tools={"edgevit": __version__, **facts.versions},
        origin=dict(spec.origin),
        original=without_answers(spec.original),
        input=InputContract(shape=(1, spec.image.height, spec.image.width, 3), preprocessing=spec.image),
        effort=_effort(spec),
        outputs=(
            OutputContract(
                name="logits",
                dtype="float32",
                shape=(1, spec.head.classes),
                meaning="one score per class" if spec.head.linear else "features: the model ends without a classifier",
                kind="scores" if spec.head.linear else "features",
            ),
            OutputContract(
                name="gates",
                dtype="uint8",
                shape=(len(spec.branches),),
                meaning="one per branch, 1 = the branch ran",
                kind="gates",
            ),
            *_tokens_output(spec),
        ),
        model=next(iter(models.values())),
        models=models,
        runtime_settings=backend(facts.case.target.backend).settings(
            next(iter(files.values())).parent,
            precision=facts.case.target.inference_precision,
            weight_bits=facts.case.target.weight_bits,
        ),
        branches=tuple(branch_facts(facts)),
        sizes=_sizes(facts, files, models),
        macs=_macs(facts),
        bound=evidence.bound,
        claims=evidence.claims,
        accuracy=evidence.accuracy,
        tokens=evidence.tokens,
        points=tuple(facts.points),
        golden_tolerance=golden_tolerance(facts.case, evidence),
    )


def golden_tolerance(case: Case, evidence: Evidence) -> float:
    """Return the largest difference of a logit that golden outputs may have on the device.

    Once a rounded value tips over, the logits of two correct kernels differ by what the model makes of it. How much
    that is parity has measured: the kernels here against the lowered graph computed as written. Machine code that was
    verified rounds alike on every CPU that runs it.
    """
    least, most = (part * evidence.deviation for part in (GOLDEN_TOLERANCE, GOLDEN_LIMIT))
    same_kernels = backend(case.target.backend).NATIVE and case.runnable
    spread = 0.0 if same_kernels else KERNEL_SPREAD * _kernel_spread(evidence.claims)
    return float(f"{min(max(least, spread), most):.4g}")


def _kernel_spread(claims: Sequence[Claim]) -> float:
    """Return the largest difference of a logit between these kernels and the lowered graph, over paths and images."""
    parities = [claim.figures for claim in claims if isinstance(claim.figures, ParityFigures)]
    lowered = [figures.against_lowered for figures in parities if figures.against_lowered]
    return max((path.max_abs_error for result in lowered for path in result.paths), default=0.0)


def _effort(spec: ProgramSpec) -> EffortContract | None:
    if not spec.steered:
        return None
    if not spec.adaptive:
        return EffortContract()
    moved = f"a unit adds {MERGE_EFFORT:g} to the cosine above which tokens merge: above 0 fewer do, below 0 more"
    return EffortContract(meaning=f"{EffortContract().meaning}; {moved}" if spec.gated else f"0 as calibrated; {moved}")


def _tokens_output(spec: ProgramSpec) -> list[OutputContract]:
    if not spec.adaptive:
        return []
    blocks = {name: f"block {number}" for number, name in enumerate(merge_branches(spec), 1)}
    places = [blocks.get(point.after, point.after) for point in spec.merges]
    meaning = f"patch tokens left after each point where they merge: {', '.join(places)}"
    return [OutputContract(name="tokens", dtype="int32", shape=(len(spec.merges),), meaning=meaning, kind="tokens")]


def _models(runtime: str, files: Sequence[str]) -> dict[str, str]:
    """Return file of the model by format, in the order of the files."""
    known = {name: kind for kind, name in backend(runtime).FILES.items()}
    return {known[name]: name for name in files if name in known}


def branch_facts(facts: Facts) -> list[BranchFacts]:
    """Return one row per branch, in order."""
    spec, evidence = facts.case.program.spec, facts.evidence
    linears = facts.case.plan.linears if facts.case.plan else ()
    rows = []
    counts = zip(macs_by_branch(spec), macs_by_branch(uncompressed(spec)), strict=True)
    for index, (branch, (macs, dense_macs)) in enumerate(zip(spec.branches, counts, strict=True)):
        planned = [p for p in linears if p.name.startswith(f"{branch.name}.")]
        rows.append(
            BranchFacts(
                name=branch.name,
                kind=branch.kind,
                units=branch.units,
                units_total=branch.units_total,
                macs=macs,
                dense_macs=dense_macs,
                gated=branch.gate is not None,
                threshold=branch.gate.threshold if branch.gate else None,
                open_rate=float(evidence.open_rates[index]) if branch.gate else None,
                memory_bytes=evidence.branch_bytes.get(branch.name),
                int8_linears=sum(p.int8 for p in planned),
                linears=0 if branch.removed else 2,
                error=facts.errors[index] if facts.errors else None,
            )
        )
    return rows


def _macs(facts: Facts) -> Macs:
    spec = facts.case.program.spec
    branches = np.array(macs_by_branch(spec))
    gated = np.array([b.gate is not None for b in spec.branches])
    everything = total_macs(spec)
    skipped = everything - int(branches[gated].sum())
    expected = skipped + float((branches * facts.evidence.open_rates)[gated].sum())
    if facts.evidence.tokens is not None:
        skipped, expected = skipped_macs(spec), facts.evidence.tokens.macs.mean
    return Macs(
        dense=total_macs(uncompressed(spec)),
        all_open=everything,
        all_skipped=skipped,
        expected=expected,
    )


def _sizes(facts: Facts, files: Mapping[str, Path], models: Mapping[str, str]) -> Sizes:
    first = next(iter(models.values()))
    # What one device loads: the model that was verified and the data beside it, not its other formats.
    beside = backend(facts.case.target.backend).BESIDE
    loaded = [path for name, path in files.items() if name == first or name in beside]
    spec = facts.case.program.spec
    parameters = sum(int(np.prod(shape)) for shape in expected_shapes(spec).values())
    dense = sum(int(np.prod(shape)) for shape in expected_shapes(uncompressed(spec)).values())
    return Sizes(
        model_bytes=sum(path.stat().st_size for path in loaded),
        float_bytes=4 * dense,
        parameters=parameters,
        dense_parameters=dense,
    )


def golden_runs(runner: Runner, spec: ProgramSpec, images: np.ndarray, *, chooser: Runner) -> list[GoldenRun]:
    """Return runs of the compiled model for all-open, all-skipped and one real path, on a calibration image.

    `chooser`, which is the same model and may be a faster one, looks for the image.
    """
    image, steady = _real_image(chooser, images, spec) if spec.steered else (images[:1], True)
    paths: list[tuple[PathName, float]] = [("real", 0.0)]
    if spec.steered:
        paths = [("all_open", EFFORT_ALL_OPEN), ("all_skipped", EFFORT_ALL_SKIPPED), *paths]
    runs = []
    for path, effort in paths:
        answer = runner.answer(image, effort) if spec.adaptive else (*runner.run(image, effort), None)
        logits, gates, tokens = answer
        if path == "real" and not steady:
            tokens = None
        runs.append(GoldenRun(path=path, effort=effort, image=image, logits=logits, gates=gates, tokens=tokens))
    return runs


def _real_image(runner: Runner, images: np.ndarray, spec: ProgramSpec) -> tuple[np.ndarray, bool]:
    """An image whose gates are mixed and not near their limits, so that it takes the same path on every device.

    Nor are its numbers of tokens near the next ones. Of no such image the first is taken, and False.
    """
    for index in range(min(GOLDEN_CANDIDATES, len(images))):
        image = images[index : index + 1]
        answers = [runner.answer(image, effort) if spec.adaptive else runner.run(image, effort) for effort in NEAR]
        states = [np.concatenate(answer[1:]) for answer in answers]
        mixed = not spec.gated or 0 < answers[1][1].sum() < len(answers[1][1])
        if mixed and all(np.array_equal(s, states[1]) for s in states):
            return image, True
    return images[:1], False
