"""What gates cost when all are open, and what a run saves when only k of 24 branches open.

    EDGEVIT_DATA=DIR python benchmarks/gating.py -o reports/reference

EDGEVIT_DATA is that of benchmarks/peers.py. Every branch of a dense model gets a gate whose logit is next to zero and
whose threshold is the branch's place in an order; `effort` k - 1/2 then opens the first k of them, at run time, in one
and the same build. The gated build has the int8 plan of the plain one, so both compute the same when all are open.
On a CPU with VNNI the files are called gating-vnni, on one that halves its vectors gating-128bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from benchmarks.cpu_class import suffix
from benchmarks.peer_candidates import MODELS
from benchmarks.peers import RUNTIMES, TVM, backend_versions, chosen_target, data_folder
from benchmarks.timing import Ratio, Times, interleave, ratio, take_turn
from edgevit.backends import Runner, Source, backend, onnx_backend
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.measure.environment import cpu_flags, environment, snapshot
from edgevit.onnx_form.assemble import assemble
from edgevit.pipeline import quantize
from edgevit.program.macs import gate_macs, head_macs, macs_by_branch, stem_macs, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import GateSpec, ProgramSpec
from edgevit.schema.measurement import Environment
from edgevit.schema.target import Target, missing_flags
from edgevit.util.strict_json import dumps, write_atomic

OPEN = (24, 18, 12, 6, 0)
ASKED_POINTS = 6.0
ASKED_OVERHEAD = {"ORT": 1.02, "OV": 1.08, TVM: 1.02}
ASKED_CLOSED = {TVM: 0.010}  # no branch open, of the model without gates
NAMES = {**RUNTIMES, TVM: "tvm"}
# Blocks in an order that takes from every depth of the model early on.
SPREAD = (0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11)
TINY = 1e-6  # gate weights: not zero, so that nothing can fold the gate away, too small to move a logit by 1/2
PLAIN, MHSA_ONLY, FFN_ONLY = "without gates", "12 MHSA only", "12 FFN only"


@dataclass(frozen=True, kw_only=True)
class PathCost:
    """One path: `open` branches ran. Shares are of the all-open path: MACs as counted, CPU time as measured."""

    name: str
    open: int
    macs: float
    time: Ratio
    cpu_median_ms: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one target: the gated build over the plain one, all and none open, and what every path costs."""

    model: str
    runtime: str
    target: str
    plain_cpu_median_ms: float
    overhead: Ratio
    closed: Ratio
    paths: tuple[PathCost, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything gating.md is made of."""

    command: str
    machine: Environment
    runs: int
    calibration: int
    results: tuple[Result, ...] = ()


def gated(program: Program, order: Sequence[int]) -> Program:
    """The Program with a gate on every branch; branch `order[i]` opens from effort `i` on."""
    rank = {index: place for place, index in enumerate(order)}
    branches = tuple(
        replace(b, gate=GateSpec(pool="prefix", threshold=float(rank[i]))) for i, b in enumerate(program.spec.branches)
    )
    weights: dict[str, np.ndarray] = {}
    for branch in branches:
        weights[f"{branch.name}.gate.weight"] = np.full(program.spec.dim, TINY, dtype=np.float32)
        weights[f"{branch.name}.gate.bias"] = np.zeros(1, dtype=np.float32)
    return program.with_weights(weights, replace(program.spec, branches=branches))


def block_order(spec: ProgramSpec) -> list[int]:
    """Both branches of a block together, blocks as SPREAD says."""
    return [2 * block + part for block in SPREAD if 2 * block < len(spec.branches) for part in (0, 1)]


def kind_order(spec: ProgramSpec, first: str) -> list[int]:
    """All branches of one kind before those of the other."""
    return sorted(range(len(spec.branches)), key=lambda i: spec.branches[i].kind != first)


def macs_share(spec: ProgramSpec, opened: Sequence[int]) -> float:
    """MACs of a run that opens these branches, as a share of the all-open run's."""
    branches = macs_by_branch(spec)
    fixed = stem_macs(spec) + head_macs(spec) + gate_macs(spec)
    return (fixed + sum(branches[i] for i in opened)) / total_macs(spec)


def measure(
    key: str,
    program: Program,
    target: Target,
    calibration: np.ndarray,
    images: np.ndarray,
    runs: int,
    turn: Path | None,
) -> Result:
    """Build the plain and the gated models and time their paths, interleaved."""
    lowered, plan = quantize(program, target, calibration)
    orders = {
        "blocks": block_order(program.spec),
        MHSA_ONLY: kind_order(program.spec, "mhsa"),
        FFN_ONLY: kind_order(program.spec, "ffn"),
    }
    programs = {PLAIN: lowered} | {name: gated(lowered, order) for name, order in orders.items()}
    with tempfile.TemporaryDirectory() as temporary:
        runners: dict[str, Runner] = {}
        for name, made in programs.items():
            folder = Path(temporary) / name
            folder.mkdir()
            model = assemble(made, plan, gating="open") if name == PLAIN else assemble(made, plan)
            runners[name] = _built(Source(program=made, plan=plan, model=model, target=target), folder)
        paths = {f"{k} of 24": ("blocks", k) for k in OPEN} | {name: (name, 12) for name in (MHSA_ONLY, FFN_ONLY)}
        steps: dict[str, Callable[[int], object]] = {PLAIN: lambda i: runners[PLAIN].run(images[i : i + 1])}
        for name, (build, opened) in paths.items():
            steps[name] = _path(runners[build], orders[build], opened, images)
        with take_turn(turn):
            times = interleave(steps, len(images), runs)
    spec = gated(lowered, orders["blocks"]).spec
    shares = {name: macs_share(spec, orders[build][:opened]) for name, (build, opened) in paths.items()}
    return _result(key, target, times, {name: opened for name, (_, opened) in paths.items()}, shares)


def _built(source: Source, folder: Path) -> Runner:
    """Compile for the runtime of the target and load with one thread."""
    target = source.target
    if target.backend not in RUNTIMES.values():
        backend(target.backend).build(source, folder)
        return backend(target.backend).load(folder, threads=1)
    runtime = onnx_backend(target.backend)
    runtime.compile(source.model, folder, formats=target.formats[:1])
    return runtime.load(folder, threads=1, precision=target.inference_precision, weight_bits=target.weight_bits)


def _path(runner: Runner, order: Sequence[int], opened: int, images: np.ndarray) -> Callable[[int], object]:
    """Run with the effort that opens the first `opened` of the order, after a check that it does."""
    effort = opened - 0.5
    _, state = runner.run(images[:1], effort)
    expected = np.isin(np.arange(len(order)), order[:opened])
    if not np.array_equal(state.astype(bool), expected):
        raise click.ClickException(f"effort {effort} opened {int(state.sum())} branches, meant to open {opened}")
    return lambda index: runner.run(images[index : index + 1], effort)


def _result(
    key: str, target: Target, times: dict[str, Times], opened: dict[str, int], shares: dict[str, float]
) -> Result:
    whole = times[f"{OPEN[0]} of 24"]
    return Result(
        model=key,
        runtime=next(short for short, name in NAMES.items() if name == target.backend),
        target=target.name,
        plain_cpu_median_ms=times[PLAIN].median_ms,
        overhead=ratio(whole, times[PLAIN]),
        closed=ratio(times[f"{OPEN[-1]} of 24"], times[PLAIN]),
        paths=tuple(
            PathCost(
                name=name,
                open=opened[name],
                macs=share,
                time=ratio(times[name], whole),
                cpu_median_ms=times[name].median_ms,
            )
            for name, share in shares.items()
        ),
    )


def chosen_targets() -> list[Target]:
    """The target of every runtime that this CPU is made for; none of TVM's where it runs none."""
    found = [chosen_target(runtime) for runtime in NAMES.values()]
    return [target for target in found if target.backend in RUNTIMES.values() or not missing_flags(target, cpu_flags())]


def table(report: Report) -> str:
    """The results as a markdown document."""
    m = report.machine
    lines = [
        "# What gates cost and save",
        "",
        f"`{report.command}`",
        "",
        f"{m.cpu}, {m.cores} cores ({', '.join(m.isa)}), {m.system}, Python {m.python}, {m.runtime_version}; load "
        f"{m.load_average_before} before, {m.load_average_after} after. Dense int8 models ({report.calibration} "
        f"calibration images), batch 1, one thread, {report.runs} rounds on real images, all paths of a model "
        "interleaved in one process. CPU: median process CPU time; a ratio is the median over rounds of the quotient "
        "within a round, with its 95 % interval.",
        "",
        "Every branch has a gate that opens at an effort of its own, so k of 24 open is chosen at run time, in one "
        "build. Asked: all open costs at most 1.02 (ONNX Runtime, TVM) or 1.08 (OpenVINO) of the same model without "
        f"gates; none open at most {ASKED_CLOSED[TVM]:.3f} of it (TVM, whose code leaves out what nothing reads); and "
        "k of 24 open, whole blocks from every depth, costs what its MACs say within "
        f"{ASKED_POINTS:.0f} points of the all-open time. The two rows that open one kind of branch only are not asked "
        "for: they show what MACs do not tell, as attention's float products and softmax take more time per MAC than "
        "the int8 Linears of an FFN.",
        "",
        "| model | runtime | target | without gates, CPU ms | all open / without gates | | none open / without | |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    for r in report.results:
        asked = ASKED_OVERHEAD[r.runtime]
        lines.append(
            f"| {r.model} | {r.runtime} | {r.target} | {r.plain_cpu_median_ms:.2f} | {r.overhead} "
            f"| at most {asked}: {_met(r.overhead.value <= asked)} | {r.closed} | {_closed(r)} |"
        )
    lines += ["", "| model | runtime | open | CPU ms | MACs | time | time - MACs, points | |", f"|{' --- |' * 8}"]
    for r in report.results:
        for p in r.paths:
            points = 100 * (p.time.value - p.macs)
            verdict = "" if "only" in p.name else _met(abs(points) <= ASKED_POINTS)
            lines.append(
                f"| {r.model} | {r.runtime} | {p.name} | {p.cpu_median_ms:.2f} | {p.macs:.1%} | {p.time} "
                f"| {points:+.1f} | {verdict} |"
            )
    return "\n".join(lines) + "\n"


def _closed(r: Result) -> str:
    asked = ASKED_CLOSED.get(r.runtime)
    return f"at most {asked:.3f}: {_met(r.closed.value <= asked)}" if asked else ""


def _met(held: bool) -> str:
    return "met" if held else "**missed**"


def plot(report: Report, path: Path) -> None:
    """Time against MACs, both as shares of the all-open path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 4.5))
    axis.plot([0, 100], [0, 100], color="0.7", label="time = MACs")
    band = [-ASKED_POINTS, 100 - ASKED_POINTS], [ASKED_POINTS, 100 + ASKED_POINTS]
    axis.fill_between([0, 100], *band, color="0.92", label=f"within {ASKED_POINTS:.0f} points")
    for result in report.results:
        paths = [p for p in result.paths if "only" not in p.name]
        label = f"{result.model}, {result.runtime}"
        axis.plot([100 * p.macs for p in paths], [100 * p.time.value for p in paths], "o-", label=label, markersize=4)
    axis.set_xlabel("MACs, % of all open")
    axis.set_ylabel("CPU time, % of all open")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})


@click.command(epilog="Example: python benchmarks/gating.py -o reports/reference")
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(MODELS)), default=tuple(MODELS))
@click.option("--runs", default=200, show_default=True, type=click.IntRange(1), help="Timed rounds.")
@click.option("--calibration", default=300, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--turn", type=click.Path(path_type=Path, dir_okay=False), help="Lock file to hold while timing.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(models: tuple[str, ...], runs: int, calibration: int, turn: Path | None, out: Path) -> None:
    """Time all-open, partly open and all-skipped paths of gated int8 models."""
    data = data_folder()
    told = f"python benchmarks/gating.py --runs {runs} --calibration {calibration}"
    told += "".join(f" --model {key}" for key in models if len(models) < len(MODELS))
    before, file = snapshot(), f"gating{suffix()}"
    out.mkdir(parents=True, exist_ok=True)
    results: tuple[Result, ...] = ()
    for key in models:
        program = from_timm(MODELS[key], weights=data / f"{MODELS[key]}.safetensors")
        known = load_images(data / "imagenet-sample-1000.tar", program.spec.image, limit=calibration).images
        images = load_images(data / "imagenet-val-1000.tar", program.spec.image, limit=min(runs, 1000)).images
        for target in chosen_targets():
            results += (measure(key, program, target, known, images, runs, turn),)
            report = Report(
                command=told,
                machine=environment(
                    before,
                    snapshot(),
                    runtime="all",
                    runtime_version=backend_versions(),
                    inference_precision="per target",
                    threads=1,
                ),
                runs=runs,
                calibration=calibration,
                results=results,
            )
            write_atomic(out / f"{file}.json", dumps(report))
            write_atomic(out / f"{file}.md", table(report))
    plot(report, out / f"{file}.png")
    click.echo(f"wrote {file}.md, {file}.json and {file}.png into {out}")


if __name__ == "__main__":
    main()
