"""Run every verifier on a build and collect what they found; the first claim that does not hold ends the build.

coverage  int8 is int8 in the runtime's own graph
parity    the compiled model computes what was lowered, and is near the float model, on every kind of path
skip      closed branches execute nothing, and cost what their MACs say
bound     the memory bound holds on every path tried, and a run capped at it passes
accuracy  top-1 where there are labels and agreement: what compression cost against the original, then quantization
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Any

import numpy as np

from edgevit.backends import Runner, Source, desk
from edgevit.backends.hollow import hollow
from edgevit.backends.reference import reference, reference_with_margins
from edgevit.build.accuracy import verify_accuracy
from edgevit.build.case import GOLDEN_PART, LEAST_PART, Case, claim, head_deviation
from edgevit.build.crew import answers, crew
from edgevit.build.elsewhere import qualified
from edgevit.errors import SkipError
from edgevit.images.match import chance_warning
from edgevit.onnx_form.assemble import detached
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.schema.claims import (
    BoundFigures,
    Claim,
    ClaimName,
    CoverageFigures,
    ParityFigures,
    PlannedException,
    SkipFigures,
)
from edgevit.schema.manifest import AccuracyRow, TokenUse
from edgevit.schema.memory_bound import MemoryBound
from edgevit.util.atomic import scratch
from edgevit.util.progress import Say, track
from edgevit.verify.coverage import check_coverage
from edgevit.verify.memory import check_memory
from edgevit.verify.parity import (
    ALL_OPEN,
    ALL_SKIPPED,
    FLOAT,
    INT8,
    QUANTIZED,
    TOKEN_PATHS,
    check_parity,
    deviation,
    drawn_paths,
)
from edgevit.verify.skip import check_skip_floor, check_skip_nodes, check_skip_time, skipped_macs
from edgevit.verify.tokens import check_token_macs, token_use

PARITY_RUNS, MOST_PARITY_IMAGES = 24, 8
SKIP_IMAGES = 2
TOKEN_EFFORTS = (ALL_OPEN, ALL_SKIPPED, 0.0, 0.5, -0.5)
SKIP_MARGIN = 0.15
MERGE_MS = 0.5  # of a point, beside its products
MARGIN_RUNS = 6
DEVIATION_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the verifiers found.

    Attributes:
        claims: every claim with its figures; all of them held.
        bound: the memory bound with the largest peak measured.
        branch_bytes: memory of each gated branch's body by name, where the runtime's graph tells.
        open_rates: share of the calibration images that opened each branch, float `[branches]`.
        tokens: how many tokens and MACs the calibration images take (None: their number is fixed).
        accuracy: rows of the report: original, compressed and bundle.
        deviation: of the logits (`verify.parity.deviation`); golden outputs may differ by a part of it.
        floats: classes that the float model names for the first of the images that accuracy is judged on, int64 `[n]`.
    """

    claims: tuple[Claim, ...]
    bound: MemoryBound
    branch_bytes: Mapping[str, int]
    open_rates: np.ndarray
    tokens: TokenUse | None
    accuracy: tuple[AccuracyRow, ...]
    deviation: float
    floats: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one verifier found: its claim, and the figures that the manifest has a place of its own for."""

    claim: Claim
    bound: MemoryBound | None = None
    branch_bytes: Mapping[str, int] = field(default_factory=dict)
    accuracy: tuple[AccuracyRow, ...] = ()
    floats: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """A claim by name, what is said while it is verified, and whether the build must run for it."""

    name: ClaimName
    said: str
    verify: Callable[[Case, Runner, Say], Found]
    runs: bool = True

    def applies(self, case: Case) -> bool:
        """Return whether there is something to claim: int8 only with a plan, skipped work with gates or thresholds."""
        return {"coverage": case.plan is not None, "skip": case.program.spec.steered}.get(self.name, True)


def verify_build(case: Case, runner: Runner, say: Say = lambda _: None) -> Evidence:
    """Verify a build; `runner` is the compiled model as the device will run it.

    What cannot run here, not even in an emulator, is bounded only, and the other claims say that nobody checked them.

    Raises:
        VerificationError: a claim does not hold; its class says which.
    """
    order = VERIFIERS if case.runnable else sorted(VERIFIERS, key=lambda each: each.name == "bound")
    found = []
    for each in order:
        if each.applies(case) and (case.runnable or not each.runs):
            say(each.said)
            found.append(each.verify(case, runner, say))
        elif each.applies(case):
            left = f"not verified: {case.unrunnable}"
            found.append(Found(claim=Claim(name=each.name, held=None, summary=left)))
    claims, bound = tuple(each.claim for each in found), next(each.bound for each in found if each.bound)
    if case.runnable:
        claims, bound = qualified(claims, bound, case.target)
    rates, tokens, spread = _watch(case, runner if case.runnable else reference(case.model))
    return Evidence(
        claims=claims,
        bound=bound,
        branch_bytes={name: size for each in found for name, size in each.branch_bytes.items()},
        open_rates=rates,
        tokens=tokens,
        accuracy=tuple(row for each in found for row in each.accuracy),
        deviation=spread,
        floats=next((each.floats for each in found if each.floats is not None), None),
    )


def _watch(case: Case, runner: Runner) -> tuple[np.ndarray, TokenUse | None, float]:
    """Open rates and tokens on all calibration images, and the logits' deviation; without gates and thresholds of few.

    Of what does not run here the lowered graph tells, whose gates parity has compared.
    """
    watched = reference(case.model) if case.elsewhere else runner
    spec = case.program.spec
    images = case.calibration.images[: None if spec.steered else DEVIATION_IMAGES]
    with crew(case, watched) as runners:
        told = track(answers(case, runners, images), "Watching the gates", len(images))
        logits, gates, *left = zip(*told, strict=True)
    rates: np.ndarray = np.stack(gates).mean(axis=0)
    use = token_use(spec, np.stack(gates), np.stack(left[0])) if spec.adaptive else None
    return rates, use, deviation(np.concatenate(logits), GOLDEN_PART * head_deviation(case.program))


def _coverage(case: Case, runner: Runner, say: Say) -> Found:
    plan = case.plan
    assert plan is not None
    result = check_coverage(plan, desk(case.target.backend).linear_kernels(case))
    exceptions = tuple(
        PlannedException(name=p.name, int8=p.int8, outliers=len(p.outliers), why=p.reason)
        for p in plan.linears
        if p.reason
    )
    figures = CoverageFigures(int8=result.int8, planned=result.planned, exceptions=exceptions)
    return Found(claim=claim(result.summary, figures))


def _parity(case: Case, runner: Runner, say: Say) -> Found:
    """Return against the float model always; a quantized build also against its own graph, computed as written."""
    gates = sum(b.gate is not None for b in case.program.spec.branches)
    drawn = drawn_paths(gates) if gates or not case.program.spec.adaptive else TOKEN_PATHS
    several = min(MOST_PARITY_IMAGES, PARITY_RUNS // (3 + drawn))
    images = case.calibration.images[: 1 if case.elsewhere else several]
    efforts = case.efforts if case.elsewhere else None
    floats = reference_with_margins(*detached(case.program))
    lengths, least = gate_lengths(case.program), LEAST_PART * head_deviation(case.program)
    exact = case.plan is None and case.target.inference_precision == "f32"
    patches = case.program.spec.patches
    how: dict[str, Any] = {"efforts": efforts, "lengths": lengths, "least_deviation": least, "patches": patches}
    # What runs elsewhere runs slowly, and tells no more than its answers.
    how["merged"] = desk(case.target.backend).merged(case) if case.program.spec.merges and not case.elsewhere else None
    result = check_parity(floats, runner, images, FLOAT if exact else INT8, **how)
    if exact or case.target.inference_precision != "f32":
        return Found(claim=claim(result.summary, ParityFigures(against_float=result)))
    del floats  # it holds the float weights again, and so will what comes next
    written = reference_with_margins(case.model, optimised=False)
    kernels = check_parity(written, runner, images, QUANTIZED, **how)
    summary = f"against float: {result.summary}; against the lowered graph: {kernels.summary}"
    return Found(claim=claim(summary, ParityFigures(against_float=result, against_lowered=kernels)))


def gate_lengths(program: Program) -> np.ndarray:
    """Return the length of the weights of every branch's gate, float `[branches]`; 1 where there is none."""
    weights = (program.weights.get(f"{branch.name}.gate.weight") for branch in program.spec.branches)
    return np.array([1.0 if weight is None else np.linalg.norm(weight) for weight in weights])


def _skip(case: Case, runner: Runner, say: Say) -> Found:
    """Return what was timed is said but not kept: equal inputs make equal bundles, and no two timings are equal."""
    spec, images = case.program.spec, case.calibration.images[: 1 if case.elsewhere else SKIP_IMAGES]
    figures = SkipFigures()
    summary = []
    macs = desk(case.target.backend).kernel_macs(case) if spec.adaptive else None
    if macs is not None:
        counted = check_token_macs(spec, macs, images, efforts=TOKEN_EFFORTS)
        figures = replace(figures, tokens=counted)
        summary.append(counted.summary)
    executed = desk(case.target.backend).executed(case)
    if executed is not None:
        nodes = check_skip_nodes(spec, executed, images)
        figures = replace(figures, nodes=nodes)
        summary.append(nodes.summary)
    if case.elsewhere and executed is None:
        left = "not verified: the runtime does not tell what it runs, and an emulator has no time of its own"
        return Found(claim=Claim(name="skip", held=None, summary=left))
    if case.elsewhere:
        return Found(claim=claim(f"{'; '.join(summary)}; on one image, in an emulator", figures))
    expected, floor = _skip_time(case, runner, say), ", or what empty branches take" if _has_floor(case) else ""
    summary.append(f"the time of all skipped against all open is near what MACs say, {expected:.1%}{floor}")
    return Found(claim=claim("; ".join(summary), replace(figures, macs_ratio=expected)))


def _skip_time(case: Case, runner: Runner, say: Say) -> float:
    """Return what MACs say of the time; a model so small that they do not is held to one with empty branches."""
    spec, images = case.program.spec, case.calibration.images[:SKIP_IMAGES]
    if not _has_floor(case):
        times = check_skip_time(spec, runner, images, margin=_skip_margin(case, runner))
        say(times.summary)
        return times.expected
    try:
        times = check_skip_time(spec, runner, images, margin=SKIP_MARGIN, looks=1)
        say(times.summary)
        return times.expected
    except SkipError as missed:
        say(str(missed).partition(";")[0])
    with scratch() as folder:
        gated = [branch.name for branch in spec.branches if branch.gate is not None]
        empty = replace(case, model=hollow(case.model, gated), folder=folder)
        source = Source(program=empty.program, plan=empty.plan, model=empty.model, target=empty.target)
        case.runtime.build(source, folder)
        say(check_skip_floor(runner, empty.load(), images).summary)
    return skipped_macs(spec) / total_macs(spec)


def _has_floor(case: Case) -> bool:
    """Return whether the build has a twin with empty branches to be held against."""
    return case.program.spec.gated and not desk(case.target.backend).GATE_MS


def _skip_margin(case: Case, runner: Runner) -> float:
    """Return what norms, copies, gates and merges cost beside the MACs, as a share of the all-open time."""
    times = []
    for _ in range(MARGIN_RUNS):
        start = process_time()
        runner.run(case.calibration.images[:1], ALL_OPEN)
        times.append((process_time() - start) * 1e3)
    gates = sum(b.gate is not None for b in case.program.spec.branches)
    points = len(case.program.spec.merges) if case.program.spec.adaptive else 0
    beside = gates * desk(case.target.backend).GATE_MS + points * MERGE_MS
    return SKIP_MARGIN + beside / max(min(times), 1e-3)


def _bound(case: Case, runner: Runner, say: Say) -> Found:
    """Return what was measured is kept only where it is the same every time."""
    asked = desk(case.target.backend)
    found = asked.memory(case, case.calibration.images[:1], case.efforts, runs=not case.elsewhere)
    bound = found.detail.bound
    held = check_memory(found.detail, found.measured, found.capped)
    if found.remark:
        say(found.remark)
    figures = BoundFigures(bound_bytes=bound.bound_bytes)
    if found.exact and found.measured and held:
        figures, peak = held, max(path.peak_bytes for path in found.measured)
        bound = replace(bound, measured_peak_bytes=peak)
    return Found(
        claim=claim(found.summary, figures),
        bound=bound,
        branch_bytes={name.split("/")[0]: max(then, other) for name, then, other in found.detail.branches},
    )


def _accuracy(case: Case, runner: Runner, say: Say) -> Found:
    rows, held, named = verify_accuracy(case, runner)
    float_top1 = next((row for row in rows if row.metric == "top1"), None)  # the least changed model comes first
    if float_top1 and (warned := chance_warning(float_top1.value, float_top1.images, case.program.spec.head.classes)):
        say(warned)
    return Found(claim=held, accuracy=rows, floats=named.floats if named.decides == "class" else None)


VERIFIERS = (
    Verifier(name="coverage", said="Verifying int8 coverage", verify=_coverage, runs=False),
    Verifier(name="parity", said="Verifying parity", verify=_parity),
    Verifier(name="skip", said="Verifying that skipped branches are skipped", verify=_skip),
    Verifier(name="bound", said="Bounding memory", verify=_bound, runs=False),
    Verifier(name="accuracy", said="Verifying accuracy", verify=_accuracy),
)
