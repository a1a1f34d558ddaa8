"""Run every verifier on a build and collect what they found; the first claim that does not hold ends the build.

coverage  int8 is int8 in the runtime's own graph
parity    the compiled model computes what was lowered, and is near the float model, on every kind of path
skip      closed branches execute nothing, and cost what their MACs say
bound     the memory bound holds on every path tried, and a run capped at it passes
accuracy  top-1 where there are labels and agreement: what compression cost against the original, then quantization
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import onnx

from edgevit.backends import MODULES, Backend, Runner, onnx_backend
from edgevit.backends import onnxruntime as ort
from edgevit.backends import tvm as tvm_backend
from edgevit.backends.onnxruntime import arena
from edgevit.backends.onnxruntime import memory_bound as ort_bound
from edgevit.backends.openvino import memory_bound as ov_bound
from edgevit.backends.reference import reference, reference_with_margins
from edgevit.backends.tvm import memory_bound as tvm_bound
from edgevit.backends.tvm.run.process import INSTALL_EMULATOR, emulator_path
from edgevit.build.elsewhere import qualified
from edgevit.images.image_set import ImageSet
from edgevit.images.match import chance_warning
from edgevit.measure.environment import cpu_flags
from edgevit.measure.fresh_process import probe_local
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.program.original import kept_answers, told, when_compressed
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.schema.claims import (
    FIGURES,
    AccuracyFigures,
    BoundFigures,
    Claim,
    ClaimName,
    CoverageFigures,
    Figures,
    OriginalResult,
    ParityFigures,
    PlannedException,
    SkipFigures,
)
from edgevit.schema.manifest import AccuracyRow
from edgevit.schema.memory_bound import BoundDetail, MemoryBound, PathMemory, check_bound
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import Target, missing_flags
from edgevit.util.progress import track
from edgevit.verify.accuracy import Named, judge, name_classes
from edgevit.verify.coverage import check_coverage
from edgevit.verify.original import accuracy_rows, compare_original
from edgevit.verify.parity import ALL_OPEN, ALL_SKIPPED, FLOAT, INT8, QUANTIZED, check_parity, deviation, drawn_paths
from edgevit.verify.skip import Trace, check_skip_nodes, check_skip_time

PARITY_RUNS, MOST_PARITY_IMAGES = 24, 8
SKIP_IMAGES = 2
EMULATED_IMAGES = 4  # each takes seconds
SKIP_MARGIN = 0.15
MARGIN_RUNS = 6
# Of `head_deviation`: images that are all of a kind look at a part of the directions only. Golden outputs allow for
# the rounding of other CPUs, which the directions that were looked at have no part in.
LEAST_PART, GOLDEN_PART = 0.125, 0.5
DEVIATION_IMAGES = 8
# An If and its gate, skipped, at worst (measured: up to 0.02 ms in ONNX Runtime and TVM, 0.065 ms in OpenVINO).
GATE_MS = {"onnxruntime": 0.03, "openvino": 0.07, "tvm": 0.03}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the verifiers found.

    Attributes:
        claims: every claim with its figures; all of them held.
        bound: the memory bound with the largest peak measured.
        branch_bytes: memory of each gated branch's body by name, where the runtime's graph tells.
        open_rates: share of the calibration images that opened each branch, float `[branches]`.
        accuracy: rows of the report: original, compressed and bundle.
        deviation: of the logits (`verify.parity.deviation`); golden outputs may differ by a part of it.
    """

    claims: tuple[Claim, ...]
    bound: MemoryBound
    branch_bytes: Mapping[str, int]
    open_rates: np.ndarray
    accuracy: tuple[AccuracyRow, ...]
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """A target, and what of it this machine can run."""

    target: Target

    @property
    def elsewhere(self) -> bool:
        """Whether the build is machine code that this CPU does not run; in an emulator: few images, and no times."""
        return self.target.cpu is not None and (self._foreign or bool(missing_flags(self.target, cpu_flags())))

    @property
    def _foreign(self) -> bool:
        return self.target.arch != platform.machine()

    @property
    def runnable(self) -> bool:
        return not self.elsewhere or (self._foreign and emulator_path() is not None)

    @property
    def unrunnable(self) -> str:
        """Why it does not run here, and what to do."""
        device = "`edgevit verify` on the device checks its golden outputs"
        if self._foreign:
            here = f"built on {platform.machine()} without an emulator"
            return f"machine code for {self.target.arch}, {here}; {device}, or build again after: {INSTALL_EMULATOR}"
        lacking = ", ".join(missing_flags(self.target, cpu_flags()))
        return f"machine code for a CPU with {lacking}, which the one it was built on lacks; {device}"


@dataclass(frozen=True, kw_only=True)
class Case(Place):
    """A compiled build and what it is held against.

    `evaluation` are the images that accuracy is judged on, held out or labelled (None: the calibration images), and
    `max_drop` the points that may be lost against the original there (None: no limit).
    """

    program: Program
    plan: QuantPlan | None
    model: onnx.ModelProto
    runtime: Backend
    folder: Path
    calibration: ImageSet
    evaluation: ImageSet | None
    max_drop: float | None = None

    @property
    def efforts(self) -> dict[str, float]:
        """Paths that are tried one by one."""
        return {"real": 0.0, **({"all_open": ALL_OPEN, "all_skipped": ALL_SKIPPED} if self.program.spec.gated else {})}


def prove(case: Case, runner: Runner, say: Say = lambda _: None) -> Evidence:
    """Verify a build; `runner` is the compiled model as the device will run it.

    What cannot run here, not even in an emulator, is bounded only, and the other claims say that nobody checked them.

    Raises:
        VerificationError: a claim does not hold; its class says which.
    """
    claims: list[Claim] = []
    if case.plan is not None:
        say("Verifying int8 coverage")
        claims.append(_coverage(case, case.plan))
    if not case.runnable:
        return _unverified(case, claims, say)
    say("Verifying parity")
    claims.append(_parity(case, runner))
    if case.program.spec.gated:
        say("Verifying that skipped branches are skipped")
        claims.append(_skip(case, runner, say))
    say("Bounding memory")
    detail, claim = _bound(case, say)
    claims.append(claim)
    say("Verifying accuracy")
    rows, claim = _accuracy(case, runner)
    claims.append(claim)
    float_top1 = next((row for row in rows if row.metric == "top1"), None)  # the least changed model comes first
    if float_top1 and (warned := chance_warning(float_top1.value, float_top1.images, case.program.spec.head.classes)):
        say(warned)
    said, memory = qualified(claims, detail.bound, case.target)
    rates, spread = _watch(case, runner)
    return Evidence(
        claims=said,
        bound=memory,
        branch_bytes={name.split("/")[0]: max(then, other) for name, then, other in detail.branches},
        open_rates=rates,
        accuracy=rows,
        deviation=spread,
    )


def _unverified(case: Case, claims: Sequence[Claim], say: Say) -> Evidence:
    say("Bounding memory")
    detail, claim = _bound(case, say)
    names: tuple[ClaimName, ...] = ("parity", "skip", "accuracy") if case.program.spec.gated else ("parity", "accuracy")
    left = (Claim(name=name, held=None, summary=f"not verified: {case.unrunnable}") for name in names)
    rates, spread = _watch(case, reference(case.model))
    said = (*claims, *left, claim)
    return Evidence(claims=said, bound=detail.bound, branch_bytes={}, open_rates=rates, accuracy=(), deviation=spread)


def _watch(case: Case, runner: Runner) -> tuple[np.ndarray, float]:
    """Open rates on all calibration images, and the logits' deviation; without gates a few images tell both.

    Of what does not run here the lowered graph tells, whose gates parity has compared.
    """
    watched = reference(case.model) if case.elsewhere else runner
    images = case.calibration.images[: None if case.program.spec.gated else DEVIATION_IMAGES]
    logits, gates = zip(*(watched.run(i[None]) for i in track(images, "Watching the gates")), strict=True)
    rates: np.ndarray = np.stack(gates).mean(axis=0)
    return rates, deviation(np.concatenate(logits), GOLDEN_PART * head_deviation(case.program))


def _claim(summary: str, figures: Figures) -> Claim:
    """Return the claim that these figures are of, which holds."""
    name = next(name for name, kind in FIGURES.items() if isinstance(figures, kind))
    return Claim(name=name, held=True, summary=summary, figures=figures)


def _coverage(case: Case, plan: QuantPlan) -> Claim:
    result = check_coverage(plan, _linear_kernels(case, plan))
    exceptions = tuple(
        PlannedException(name=p.name, int8=p.int8, outliers=len(p.outliers), why=p.reason)
        for p in plan.linears
        if p.reason
    )
    figures = CoverageFigures(int8=result.int8, planned=result.planned, exceptions=exceptions)
    return _claim(result.summary, figures)


def _linear_kernels(case: Case, plan: QuantPlan) -> tuple[tuple[str, bool], ...]:
    if case.target.backend == "tvm":
        return tvm_backend.linear_kernels(case.folder)
    # OpenVINO shows no branch bodies in its runtime graph; there the plain twin of the same plan is looked at.
    shown = case.model if case.target.backend == "onnxruntime" else assemble(case.program, plan, gating="open")
    return onnx_backend(case.target.backend).linear_kernels(shown, precision=case.target.inference_precision)


def _parity(case: Case, runner: Runner) -> Claim:
    """Against the float model always; a quantized build also against its own graph, computed as written."""
    gates = sum(b.gate is not None for b in case.program.spec.branches)
    several = min(MOST_PARITY_IMAGES, PARITY_RUNS // (3 + drawn_paths(gates)))
    images = case.calibration.images[: 1 if case.elsewhere else several]
    efforts = case.efforts if case.elsewhere else None
    floats = reference_with_margins(*detached(case.program))
    lengths, least = gate_lengths(case.program), LEAST_PART * head_deviation(case.program)
    exact = case.plan is None and case.target.inference_precision == "f32"
    how: dict[str, Any] = {"efforts": efforts, "lengths": lengths, "least_deviation": least}
    result = check_parity(floats, runner, images, FLOAT if exact else INT8, **how)
    if exact or case.target.inference_precision != "f32":
        return _claim(result.summary, ParityFigures(against_float=result))
    del floats  # it holds the float weights again, and so will what comes next
    written = reference_with_margins(case.model, optimised=False)
    kernels = check_parity(written, runner, images, QUANTIZED, **how)
    summary = f"against float: {result.summary}; against the lowered graph: {kernels.summary}"
    return _claim(summary, ParityFigures(against_float=result, against_lowered=kernels))


def gate_lengths(program: Program) -> np.ndarray:
    """Length of the weights of every branch's gate, float `[branches]`; 1 where there is none."""
    weights = (program.weights.get(f"{branch.name}.gate.weight") for branch in program.spec.branches)
    return np.array([1.0 if weight is None else np.linalg.norm(weight) for weight in weights])


def head_deviation(program: Program) -> float:
    """What the logits deviate by over features of all directions; 0 where no norm says how long these are.

    A normalised value has a deviation of 1, so a logit's is the length of its column of the head, norm included. On
    images it is of the same size (DeiT-Ti: 1.30 and 1.33, ViT-Ti: 2.08 and 2.49), but no image can take it away.
    """
    head, weights = program.spec.head, program.weights
    name = "head.pooled_norm" if head.pooled_norm else "head.norm"
    if f"{name}.weight" not in weights:
        return 0.0
    scales = weights[f"{name}.weight"].astype(np.float64)
    if not head.linear:
        return float(np.sqrt((scales**2).mean()))
    columns = weights["head.weight"].astype(np.float64)
    scales = np.resize(scales, len(columns))  # the prefix tokens' rows, one after the other
    return float(np.sqrt(((scales[:, None] * columns) ** 2).sum(axis=0).mean()))


def _skip(case: Case, runner: Runner, say: Say) -> Claim:
    """What was timed is said but not kept: equal inputs make equal bundles, and no two timings are equal."""
    spec, images = case.program.spec, case.calibration.images[: 1 if case.elsewhere else SKIP_IMAGES]
    figures = SkipFigures()
    summary = []
    traced = TRACES.get(case.target.backend)
    if traced is not None:
        nodes = check_skip_nodes(spec, traced(case.folder), images)
        figures = replace(figures, nodes=nodes)
        summary.append(nodes.summary)
    if case.elsewhere:
        return _claim(f"{nodes.summary}; on one image, in an emulator", figures)
    times = check_skip_time(spec, runner, images, margin=_skip_margin(case, runner))
    say(times.summary)
    figures = replace(figures, macs_ratio=times.expected)
    summary.append(f"the time of all skipped against all open is near what MACs say, {times.expected:.1%}")
    return _claim("; ".join(summary), figures)


def _trace_onnxruntime(folder: Path) -> Trace:
    return lambda image, effort: ort.trace(folder, image, effort)


def _trace_tvm(folder: Path) -> Trace:
    runner = tvm_backend.start(folder, trace=True)

    def trace(image: np.ndarray, effort: float) -> tuple[tuple[tuple[str, str], ...], np.ndarray]:
        calls, gates = runner.trace(image, effort)
        return tuple(call.node for call in calls), gates

    return trace


# OpenVINO tells of an If that it ran, not what ran in it.
TRACES: Mapping[str, Callable[[Path], Trace]] = {"onnxruntime": _trace_onnxruntime, "tvm": _trace_tvm}


def _skip_margin(case: Case, runner: Runner) -> float:
    """What norms, copies and the gates themselves may cost beside the MACs, as a share of the all-open time."""
    times = []
    for _ in range(MARGIN_RUNS):
        start = process_time()
        runner.run(case.calibration.images[:1], ALL_OPEN)
        times.append((process_time() - start) * 1e3)
    gates = sum(b.gate is not None for b in case.program.spec.branches)
    return SKIP_MARGIN + gates * GATE_MS.get(case.target.backend, max(GATE_MS.values())) / max(min(times), 1e-3)


def _bound(case: Case, say: Say) -> tuple[BoundDetail, Claim]:
    if case.target.backend == "onnxruntime":
        return _bound_onnxruntime(case)
    return _bound_tvm(case, say) if case.target.backend == "tvm" else _bound_openvino(case, say)


def _bound_onnxruntime(case: Case) -> tuple[BoundDetail, Claim]:
    image = case.calibration.images[:1]
    path = case.folder / (ort.MODEL if "onnx" in case.target.formats else ort.ORT_MODEL)
    detail = ort_bound.bound(path if "onnx" in case.target.formats else case.model)
    settings = ort.entries(case.target.weight_bits)
    measured = arena.measure_arena(path, image, settings=settings)
    result = check_bound(detail, measured)
    capped = arena.check_capped(arena.run_capped(path, detail, image, settings=settings))
    peak = max(p.peak_bytes for p in measured)
    summary = (
        f"{detail.bound.bound_bytes / 1e6:.2f} MB proven over all paths; arena peak {peak / 1e6:.2f} MB measured, "
        f"all-open run passes under a cap of {capped.cap_bytes / 1e6:.2f} MB"
    )
    return replace(detail, bound=replace(detail.bound, measured_peak_bytes=peak)), _claim(summary, result)


def _bound_openvino(case: Case, say: Say) -> tuple[BoundDetail, Claim]:
    """The graph's tensors are bounded; the process, which holds more, is measured, and said but not kept."""
    model = case.folder / "model.xml"
    detail = ov_bound.bound(model)
    size = detail.bound.bound_bytes
    probe = probe_local(
        MODULES[case.target.backend],
        model,
        case.calibration.images[:1],
        (ALL_OPEN, ALL_SKIPPED, 0.0),
        threads=case.target.threads,
        precision=case.target.inference_precision,
    )
    peak = probe.process.peak_bytes - probe.process.imported_bytes if probe.process else None
    if peak is not None:
        say(f"a fresh process grew by {peak / 1e6:.1f} MB (measured, not a bound)")
    summary = f"{size / 1e6:.2f} MB proven for the graph's tensors; the process holds more: profile it"
    return detail, _claim(summary, BoundFigures(bound_bytes=size))


def _bound_tvm(case: Case, say: Say) -> tuple[BoundDetail, Claim]:
    """Read off the library that ships, for any architecture; held against fresh processes of its own runner.

    What they touched is said but not kept: to the byte it is never twice the same.
    """
    needed = tvm_backend.memory(case.folder)
    detail = tvm_bound.bound(arena=needed.arena, io=needed.inputs + needed.outputs, weights=needed.weights)
    run_bytes, figures = detail.bound.arena_bytes, BoundFigures(bound_bytes=detail.bound.bound_bytes)
    image = case.calibration.images[:1]
    if case.elsewhere:
        summary = f"{run_bytes / 1e6:.2f} MB proven for a run on any path; not measured, as no device ran it"
        return detail, _claim(summary, figures)
    measured = [
        # Small buffers may lie where the process has been before; its input a run touches in any case.
        PathMemory(
            name=name,
            effort=effort,
            open_branches=int(gates.sum()),
            peak_bytes=max(touched, needed.inputs),
            nodes=(),
        )
        for name, effort in case.efforts.items()
        for touched, gates in [tvm_backend.touched(case.folder, image, effort)]
        if touched is not None
    ]
    check_bound(detail, measured)
    peak = max(path.peak_bytes for path in measured)
    say(f"a run touched {peak / 1e6:.2f} MB (the bound says {run_bytes / 1e6:.2f} MB)")
    summary = (
        f"{run_bytes / 1e6:.2f} MB proven for a run on any path, held by fresh processes on {len(measured)}; "
        f"weights are {detail.bound.weights_bytes / 1e6:.2f} MB of a mapped file, read as branches open"
    )
    return detail, _claim(summary, figures)


def _accuracy(case: Case, runner: Runner) -> tuple[tuple[AccuracyRow, ...], Claim]:
    """The bundle against the float model that was quantized, and both against the original where its word is known."""
    floats = reference(*detached(case.program))
    limits: dict[str, float] = {"min_agreement": case.target.min_agreement, "max_top1_drop": case.target.max_top1_drop}

    def bundle(image: np.ndarray) -> np.ndarray:
        return runner.run(image)[0]

    def compressed(image: np.ndarray) -> np.ndarray:
        return floats.run(image)[0]

    judged = case.evaluation or case.calibration
    # In an emulator an image takes seconds, and top-1 of a few says nothing, unless a limit asks for it.
    count = EMULATED_IMAGES if case.elsewhere else len(judged)
    images = judged.images[:count]
    labels = None if judged.labels is None or case.evaluation is None else judged.labels[:count]
    if case.elsewhere and case.max_drop is None:
        labels = None
    spec = case.program.spec
    least = LEAST_PART * head_deviation(case.program)
    named = name_classes(bundle, compressed, images, features=not spec.head.linear, least_deviation=least)
    result = judge(named, labels, **limits)
    answers = _answers(spec, named, judged.images)
    against: OriginalResult | None = None
    judged_on = _judged_on(case)
    summary = f"{result.summary}{judged_on}; against the original: {told(spec.original, spec.head.classes)}"
    if answers is not None:
        against = compare_original(answers[:count], named, labels, compressed=spec.compressed, max_drop=case.max_drop)
        # Few images without labels say little; labelled ones that were seen before are said beside them.
        when = when_compressed(spec.original, spec.head.classes, labelled=True) if labels is None else ""
        summary = f"{against.summary}{judged_on}{'; ' if when else ''}{when}"
    figures = AccuracyFigures(against_float=result, against_original=against)
    return accuracy_rows(result, against), _claim(summary, figures)


def _answers(spec: ProgramSpec, named: Named, images: np.ndarray) -> np.ndarray | None:
    """What the original says of the images, where that is known; classes are all that is kept of its answers."""
    if not spec.compressed:
        return named.floats
    return kept_answers(spec, images) if named.decides == "class" else None


def _judged_on(case: Case) -> str:
    """Which images, where they are not labelled ones that the user gave to judge with."""
    if case.evaluation is None:
        return ", on the calibration images themselves, which are too few to hold any out"
    return "" if case.evaluation.labels is not None else ", on images held out of the calibration"
