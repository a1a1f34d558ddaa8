"""What one build computes, answers and takes from all tokens down to as few as it may: its curve over `effort`.

    EDGEVIT_DATA=DIR python -m benchmarks.effort_curve --program out/tokens/deit_tiny-0.7-image -o reports/reference

A Program whose merges follow the image is built once, in int8, and so is the dense model that it was made of. Every
image is run by the dense build and at every effort, in turns, in one thread: a time is the median of the quotients with
the dense run of the same image. EDGEVIT_DATA is that of benchmarks/tokens.py, which writes the Program. --work keeps
the builds.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np

from benchmarks.compression_curve import MODELS
from benchmarks.timing import Ratio, median_interval
from edgevit import pipeline
from edgevit.backends import Runner, Source, backend
from edgevit.backends.reference import reference
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.measure.environment import cpu_name
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program, load_program
from edgevit.program.tokens import write_plan
from edgevit.schema.quant_plan import attention_names
from edgevit.schema.target import Target, load_target
from edgevit.util.progress import track
from edgevit.util.strict_json import dumps, write_atomic

EFFORTS = (np.inf, 4.0, 2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -8.0, -np.inf)
TARGET = "x86-64-avx512vnni-tvm"
CALIBRATION, WARMUP = 300, 10


@dataclass(frozen=True, kw_only=True)
class Point:
    """The build at one effort; shares of the dense model's MACs (10th and 90th percentile) and of its build's time.

    `agreement` is with the dense model in float, `left` the mean of patch tokens after every point.
    """

    effort: str
    macs: float
    macs_low: float
    macs_high: float
    time: Ratio
    top1: float
    agreement: float
    left: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A curve, and what the dense int8 build names and takes; `dense_ms` is CPU time of one thread."""

    command: str
    machine: str
    model: str
    plan: str
    target: str
    images: int
    dense_top1: float
    dense_agreement: float
    dense_ms: float
    float_top1: float
    points: tuple[Point, ...]


def built(program: Program, target: Target, calibration: np.ndarray, folder: Path) -> Runner:
    """Return an int8 build, made in `folder` where it is not there yet."""
    runtime = backend(target.backend)
    if not folder.exists():
        lowered, plan = pipeline.quantize(program, target, calibration)
        assert plan is not None
        if target.attention == "int8":
            plan = replace(plan, attentions=attention_names(program.spec))
        making = folder.with_name(f"{folder.name}.making")
        making.mkdir(parents=True, exist_ok=True)
        source = Source(program=lowered, plan=plan, model=assemble(lowered, plan), target=target)
        runtime.build(source, making)
        making.rename(folder)
    return runtime.load(folder, threads=1, precision=target.inference_precision, weight_bits=target.weight_bits)


def named(program: Program, images: np.ndarray) -> np.ndarray:
    """Return the classes of a Program in float, `[n]`."""
    runner = reference(*detached(program))
    return np.array([int(runner.run(image[None])[0].argmax()) for image in images])


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Of every image by a build at one effort: class, MACs, CPU time in ms, and patch tokens left `[n, points]`."""

    said: np.ndarray
    macs: np.ndarray
    ms: np.ndarray
    left: np.ndarray


def in_turns(dense: Runner, merged: Runner, program: Program, images: np.ndarray, seed: int = 0) -> list[Runs]:
    """Run every image by both builds, at every effort, in a drawn order; return the dense build's runs first."""
    rng, ways = np.random.default_rng(seed), [None, *EFFORTS]
    found: list[list[tuple[int, int, float, np.ndarray]]] = [[] for _ in ways]
    shown = track([*images[:WARMUP], *images], "Running")
    for count, image in enumerate(shown):
        for index in rng.permutation(len(ways)):
            effort = ways[index]
            begin = time.process_time()
            if effort is None:
                logits, gates = dense.run(image[None])[:2]
                left = np.zeros(0, np.int32)
            else:
                logits, gates, left = merged.answer(image[None], float(np.clip(effort, -1e30, 1e30)))
            ms = 1000 * (time.process_time() - begin)
            macs = 0 if effort is None else run_macs(program.spec, gates, left)
            if count >= len(images[:WARMUP]):  # they come again
                found[index].append((int(logits.argmax()), macs, ms, np.array(left)))
    return [
        Runs(said=np.array(said), macs=np.array(macs), ms=np.array(ms), left=np.stack(left))
        for said, macs, ms, left in (zip(*each, strict=True) for each in found)
    ]


def point(effort: float, runs: Runs, dense: Runs, whole: int, labels: np.ndarray, expected: np.ndarray) -> Point:
    """Return what the runs at an effort say."""
    macs = runs.macs / whole
    return Point(
        effort=f"{effort:g}",
        macs=float(macs.mean()),
        macs_low=float(np.quantile(macs, 0.1)),
        macs_high=float(np.quantile(macs, 0.9)),
        time=median_interval([float(q) for q in runs.ms / dense.ms]),
        top1=float((runs.said == labels).mean()),
        agreement=float((runs.said == expected).mean()),
        left=tuple(round(float(n), 1) for n in runs.left.mean(axis=0)),
    )


def render(report: Report) -> str:
    """Return effort-curve.md."""
    lines = [
        "# One build from all tokens to a third: accuracy against MACs and time over effort",
        "",
        f"`{report.command}`",
        "",
        f"{report.machine}, one thread. {report.model} merges tokens at {report.plan}, without any training, built "
        f"once for {report.target} (int8). {report.images} images of ImageNet's validation set that nothing was chosen "
        "by. MACs: mean, and in brackets the 10th and 90th percentile, as shares of the dense model's. Time: CPU time "
        "over that of the dense int8 build for the same target, each image in turn, median with its 95 % interval. "
        "Agreement: the same class as the dense model in float.",
        "",
        f"Dense: {report.float_top1:.1%} in float; the dense int8 build {report.dense_top1:.1%}, agreement "
        f"{report.dense_agreement:.1%}, {report.dense_ms:.2f} ms. At most effort the same weights are run with the "
        "points that merge nothing, which is what the knob costs.",
        "",
        "![Top-1 and agreement against time](effort-curve.png)",
        "",
        "| effort | MACs | time | top-1 | agreement | tokens left |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in report.points:
        lines.append(
            f"| {each.effort} | {each.macs:.3f} ({each.macs_low:.3f} to {each.macs_high:.3f}) | {each.time} | "
            f"{each.top1:.1%} | {each.agreement:.1%} | {', '.join(f'{n:.0f}' for n in each.left)} |"
        )
    return "\n".join(lines) + "\n"


def plot(report: Report, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    times = [100 * p.time.value for p in report.points]
    for name, values, colour in (
        ("agreement with the dense model in float", [100 * p.agreement for p in report.points], "tab:gray"),
        ("top-1", [100 * p.top1 for p in report.points], "tab:blue"),
    ):
        axis.plot(times, values, marker="o", markersize=4, color=colour, label=name)
    for each in report.points:
        place = (100 * each.time.value, 100 * each.top1)
        axis.annotate(each.effort, place, (0, -11), textcoords="offset points", fontsize=7)
    axis.plot(100, 100 * report.dense_top1, marker="s", color="tab:orange", label="dense build, top-1")
    axis.set_xlabel("CPU time, % of the dense int8 build")
    axis.set_ylabel("%")
    axis.invert_xaxis()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def measure(
    program: Program, dense: Program, calibration: np.ndarray, held: ImageSet, target: Target, work: Path
) -> Report:
    """Build both, run them and return the report."""
    assert held.labels is not None
    expected = named(dense, held.images)
    named_programs = (("dense", dense), ("merged", program))
    one, other = (built(p, target, calibration, work / f"{name}-{target.name}") for name, p in named_programs)
    first, *runs = in_turns(one, other, program, held.images)
    whole = total_macs(dense.spec)
    return Report(
        command="python -m benchmarks.effort_curve --program out/tokens/deit_tiny-0.7-image",
        machine=cpu_name(),
        model=dense.spec.name,
        plan=write_plan(program.spec),
        target=target.name,
        images=len(held.images),
        dense_top1=float((first.said == held.labels).mean()),
        dense_agreement=float((first.said == expected).mean()),
        dense_ms=float(np.median(first.ms)),
        float_top1=float((expected == held.labels).mean()),
        points=tuple(point(e, r, first, whole, held.labels, expected) for e, r in zip(EFFORTS, runs, strict=True)),
    )


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), default="deit_tiny", show_default=True)
@click.option("--program", type=click.Path(path_type=Path, exists=True), required=True, help="With merges by image.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="EDGEVIT_DATA", required=True)
@click.option("--target", default=TARGET, show_default=True)
@click.option("--images", "count", type=int, default=1000, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/effort"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(model: str, program: Path, data: Path, target: str, count: int, work: Path, output: Path) -> None:
    """Measure, write effort-curve.json, effort-curve.md and effort-curve.png."""
    timm_name = MODELS[model]
    dense = from_timm(timm_name, weights=data / f"{timm_name}.safetensors")
    held = load_images(data / "imagenet-val-1000.tar", dense.spec.image, labelled=True, limit=count)
    calibration = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=CALIBRATION).images
    report = measure(load_program(program), dense, calibration, held, load_target(target), work)
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "effort-curve.json", dumps(asdict(report)))
    write_atomic(output / "effort-curve.md", render(report))
    plot(report, output / "effort-curve.png")


if __name__ == "__main__":
    main()
