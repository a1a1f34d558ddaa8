r"""A trained Program's bundles against the dense model's int8 bundles: accuracy, time per path, memory bound.

    python -m benchmarks.usdc_builds --name cifar10 --program DIR/program --dense DIR/program \
        --calibration cifar10-train.npz --eval cifar10-test.npz -o reports/reference

Both are built by the same `build` for the x86 target of each runtime that this CPU is made for, and run interleaved in
one process on labelled test images with one thread. `real` is what the gates decide for the image of the round; the
other two paths are forced by `effort`. A Program without gates has one path.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.bundles import build_bundle
from benchmarks.peers import backend_versions, chosen_target
from benchmarks.timing import Ratio, interleave, median_interval, take_turn
from edgevit.backends import Runner, backend
from edgevit.frontends.resolve import resolve
from edgevit.images.image_set import TESTED, ImageSet, load_images, number_labels
from edgevit.measure.environment import environment, snapshot
from edgevit.program.original import weights_digest
from edgevit.program.program import Program, load_program
from edgevit.schema.manifest import Manifest
from edgevit.schema.manifest_file import parse_manifest
from edgevit.schema.measurement import Environment
from edgevit.schema.target import Target, load_target
from edgevit.tasks.classes import keep_classes, read_classes
from edgevit.util.strict_json import dumps, write_atomic

RUNTIMES = ("onnxruntime", "openvino", "tvm")
ALWAYS, NEVER = 1e4, -1e4
ASKED_SPEED, ASKED_POINTS = 1.8, 1.0
DENSE, REAL, OPEN, SKIPPED = "dense int8", "real images", "all open", "all skipped"


@dataclass(frozen=True, kw_only=True)
class Built:
    """One target: both bundles' figures, and the time of every path as a share of the dense int8 bundle's.

    `mean_speedup` is the dense bundle's mean CPU time over that of the real path, over all rounds.
    """

    target: str
    dense_float_top1: float
    dense_top1: float
    top1: float
    images: int
    dense_bound_bytes: int
    bound_bytes: int
    dense_model_bytes: int
    model_bytes: int
    dense_cpu_ms: float
    paths: dict[str, Ratio]
    mean_speedup: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the table is made of."""

    command: str
    name: str
    machine: Environment
    runs: int
    results: tuple[Built, ...] = ()


def place(program: Program, target: Target, sets: tuple[ImageSet, ImageSet], work: Path) -> Path:
    """The folder of a bundle in `work`, named by all that it is made of."""
    told = (dumps(program.spec), weights_digest(program), dumps(target), *(images.digest for images in sets))
    return work / f"{target.name}-{hashlib.sha256(' '.join(told).encode()).hexdigest()[:12]}"


def bundle(program: Program, target: Target, sets: tuple[ImageSet, ImageSet], folder: Path) -> Manifest:
    """Build one bundle, or take the one that is there; every verifier runs."""
    calibration, evaluation = sets
    file = folder / "manifest.json"
    if file.exists():
        return parse_manifest(file.read_bytes(), file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return build_bundle(program, target, calibration, folder, evaluation=evaluation).manifest


def top1(manifest: Manifest, model: str) -> float:
    """Top-1 of the `bundle`, the float `compressed` model, or the `original` in float."""
    return next(r.value for r in manifest.accuracy if r.metric == "top1" and r.model == model)


def measure(
    program: Program,
    dense: Program,
    target: Target,
    sets: tuple[ImageSet, ImageSet],
    runs: int,
    turn: Path | None,
    work: Path | None,
) -> Built:
    """Build both and time every path, interleaved."""
    runtime, images = backend(target.backend), sets[1].images
    with tempfile.TemporaryDirectory() as temporary:
        programs, kept = {"dense": dense, "gated": program}, work or Path(temporary)
        folders = {name: place(p, target, sets, kept) for name, p in programs.items()}
        manifests = {name: bundle(p, target, sets, folders[name]) for name, p in programs.items()}

        def load(name: str) -> Runner:
            return runtime.load(
                folders[name], threads=1, precision=target.inference_precision, weight_bits=target.weight_bits
            )

        chosen = np.random.default_rng(0).permutation(len(images))[: min(runs, len(images))]

        def step(runner: Runner, effort: float) -> Callable[[int], object]:
            return lambda i: runner.run(images[chosen[i]][None], effort)

        with take_turn(turn):
            plain, gated = load("dense"), load("gated")
            steps = {DENSE: step(plain, 0.0), REAL: step(gated, 0.0)}
            if program.spec.gated:
                steps |= {OPEN: step(gated, ALWAYS), SKIPPED: step(gated, NEVER)}
            times = interleave(steps, len(chosen), runs)
    base = times[DENSE]
    shares = {
        name: median_interval([a / b for a, b in zip(t.cpu_ms, base.cpu_ms, strict=True)])
        for name, t in times.items()
        if name != DENSE
    }
    return Built(
        target=target.name,
        dense_float_top1=top1(manifests["dense"], "original"),
        dense_top1=top1(manifests["dense"], "bundle"),
        top1=top1(manifests["gated"], "bundle"),
        images=len(images),
        dense_bound_bytes=manifests["dense"].bound.bound_bytes,
        bound_bytes=manifests["gated"].bound.bound_bytes,
        dense_model_bytes=manifests["dense"].sizes.model_bytes,
        model_bytes=manifests["gated"].sizes.model_bytes,
        dense_cpu_ms=base.median_ms,
        paths=shares,
        mean_speedup=sum(base.cpu_ms) / sum(times[REAL].cpu_ms),
    )


def verdict(built: Built) -> str:
    """What of that which was asked for is missed."""
    slow = built.mean_speedup < ASKED_SPEED
    lost = 100 * (built.dense_top1 - built.top1) > ASKED_POINTS + 1e-9
    missed = [name for name, is_missed in (("speed", slow), ("points", lost)) if is_missed]
    return f"**missed: {', '.join(missed)}**" if missed else "met"


def table(report: Report) -> str:
    """The results in Markdown."""
    m = report.machine
    lines = [
        f"# {report.name}: the trained Program's bundles against the dense model's",
        "",
        f"`{report.command}`",
        "",
        f"{m.cpu}, {m.cores} cores ({', '.join(m.isa)}), {m.system}, {m.runtime_version}; load {m.load_average_before} "
        f"before, {m.load_average_after} after. Batch 1, one thread, {report.runs} rounds on test images, interleaved; "
        "median over rounds of the quotient of process CPU times within a round, with its 95 % interval.",
        "",
        f"Asked: at least {ASKED_SPEED} times as fast as dense int8 on real images, losing {ASKED_POINTS:.1f} point at "
        f"most. Top-1 on {report.results[0].images} labelled images.",
        "",
        "| target | dense float, int8 | bundle | points | mean speed-up | real | all open | all skipped | bound | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in report.results:
        points = 100 * (r.top1 - r.dense_top1)
        cells = " | ".join(str(r.paths.get(p, "")) for p in (REAL, OPEN, SKIPPED))
        lines.append(
            f"| {r.target} | {r.dense_float_top1:.2%}, {r.dense_top1:.2%} | {r.top1:.2%} | {points:+.2f} | "
            f"{r.mean_speedup:.2f} | {cells} | {r.bound_bytes / 1e6:.2f} of {r.dense_bound_bytes / 1e6:.2f} MB | "
            f"{verdict(r)} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--name", required=True, help="Name of the data set; the files are usdc-NAME.json and .md.")
@click.option("--program", required=True, type=click.Path(path_type=Path, exists=True), help="The trained Program.")
@click.option("--dense", required=True, help="The dense model: a Program, or a name with --weights.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="Weights of a named dense model.")
@click.option("--classes", help="Keep only these classes of both, as `edgevit build --classes` does.")
@click.option("--calibration", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--eval", "evaluation", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--target", "targets", multiple=True, help="Build for this one (default: per runtime this CPU's own).")
@click.option("--limit", default=300, show_default=True, help="Calibration images.")
@click.option("--eval-limit", type=int, help="Test images; all by default.")
@click.option("--runs", default=400, show_default=True, help="Timed rounds.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Keep bundles here for other runs.")
@click.option("--turn", type=click.Path(path_type=Path, dir_okay=False), help="Lock file to hold while timing.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(
    name: str,
    program: Path,
    dense: str,
    weights: Path | None,
    classes: str | None,
    calibration: Path,
    evaluation: Path,
    targets: tuple[str, ...],
    limit: int,
    eval_limit: int | None,
    runs: int,
    work: Path | None,
    turn: Path | None,
    out: Path,
) -> None:
    """Build and time a trained Program against its dense model."""
    before, small, large = snapshot(), load_program(program), resolve(dense, weights=weights)
    if classes is not None:
        small, large = (keep_classes(p, read_classes(classes, p.spec)) for p in (small, large))
    sets = (
        load_images(calibration, small.spec.image, limit=limit, splits=("train",)),
        number_labels(
            load_images(evaluation, small.spec.image, limit=eval_limit, labelled=True, splits=TESTED), small.spec
        ),
    )
    results: tuple[Built, ...] = ()
    for target in map(load_target, targets) if targets else map(chosen_target, RUNTIMES):
        results += (measure(small, large, target, sets, runs, turn, work),)
    machine = environment(
        before,
        snapshot(),
        runtime="both",
        runtime_version=backend_versions(),
        inference_precision="per target",
        threads=1,
    )
    settings = {"--eval-limit": eval_limit, "--classes": classes}
    more = "".join(f" {key} {value}" for key, value in settings.items() if value is not None)
    more += "".join(f" --target {target}" for target in targets)
    command = f"python -m benchmarks.usdc_builds --name {name} --limit {limit} --runs {runs}{more}"
    report = Report(command=command, name=name, machine=machine, runs=runs, results=results)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"usdc-{name}.json", dumps(report))
    write_atomic(out / f"usdc-{name}.md", table(report))
    click.echo(table(report))


if __name__ == "__main__":
    main()
