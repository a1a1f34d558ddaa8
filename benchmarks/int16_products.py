"""What it costs and brings that four products are added in 16 bits, not two, where a CPU has no VNNI.

    EDGEVIT_DATA=DIR python -m benchmarks.int16_products -o reports/reference

A dense model is quantized and compiled for a TVM target twice, with `int16_products` of 2 and of 4, from the same
images; logits of both are held against the float model's, and both run in turn on real images in one process. Which CPU
it is decides what there is to gain: the report's name says its class. EDGEVIT_DATA is that of benchmarks/peers.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.cpu_class import suffix
from benchmarks.peer_candidates import MODELS
from benchmarks.peers import data_folder
from benchmarks.timing import Ratio, interleave, ratio
from edgevit.backends import Source, backend
from edgevit.backends.reference import reference
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.measure.environment import environment, snapshot
from edgevit.onnx_form.assemble import assemble
from edgevit.pipeline import quantize
from edgevit.program.program import Program
from edgevit.schema.claims import Drop, Fraction
from edgevit.schema.int16_sums import Products
from edgevit.schema.measurement import Environment
from edgevit.schema.target import Target, load_target
from edgevit.tasks.sensitivity import drift
from edgevit.util.progress import track
from edgevit.util.strict_json import dumps, write_atomic
from edgevit.verify.accuracy import fraction, paired_drop

NAME = "int16-products"
KINDS: tuple[Products, ...] = (2, 4)
Logits = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model with so many products: how far its logits are from the float model's, and its time of that with two."""

    model: str
    products: Products
    rms: float
    kl: float
    top1: Fraction
    drop: Drop
    agreement: Fraction
    cpu_ms: float
    to_two: Ratio


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything int16-products.md is made of."""

    command: str
    machine: Environment
    target: str
    images: int
    calibration: int
    rounds: int
    rows: tuple[Row, ...]


def measure(
    model: str, builds: dict[Products, Logits], plain: np.ndarray, evaluation: ImageSet, rounds: int
) -> tuple[Row, ...]:
    """Compare the builds of one model with its float logits `[n, classes]`, and with each other in time."""
    images = evaluation.images
    found = {
        products: np.concatenate([run(images[i : i + 1]) for i in track(range(len(images)), f"{model}, {products}")])
        for products, run in builds.items()
    }
    steps = {str(products): partial(_step, run, images) for products, run in builds.items()}
    times = interleave(steps, len(images), rounds)
    assert evaluation.labels is not None
    right = plain.argmax(axis=1) == evaluation.labels
    rows = []
    for products, logits in found.items():
        named, moved = logits.argmax(axis=1), drift(plain, logits)
        rows.append(
            Row(
                model=model,
                products=products,
                rms=float(np.sqrt(((logits - plain) ** 2).mean())),
                kl=moved.kl,
                top1=fraction(named == evaluation.labels),
                drop=paired_drop(right, named == evaluation.labels),
                agreement=fraction(named == plain.argmax(axis=1)),
                cpu_ms=times[str(products)].median_ms,
                to_two=ratio(times[str(products)], times[str(KINDS[0])]),
            )
        )
    return tuple(rows)


def _step(run: Logits, images: np.ndarray, index: int) -> object:
    return run(images[index : index + 1])


def render(report: Report) -> str:
    """The Markdown document."""
    m = report.machine
    lines = [
        "# Four products in 16 bits instead of two",
        "",
        f"`{report.command}` on {m.cpu} ({', '.join(m.isa)}; {m.runtime_version}; load {m.load_average_before} to "
        f"{m.load_average_after}), target {report.target}, dense models, one thread. Time: process CPU time, medians "
        f"of {report.rounds} rounds in turn; of two: median of the quotients within rounds, with its 95 % interval.",
        "",
        f"Logits against the float model's on {report.images} images of ImageNet's validation set; drop: top-1 below "
        f"the float model's on the same images. int8 ranges and weights are from {report.calibration} images of "
        "another set.",
        "",
        "| model | products | rms of logits | KL, nats | top-1 | drop | agreement | CPU ms | of two |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in report.rows:
        drop = f"{100 * r.drop.value:+.1f} ({100 * r.drop.low:+.1f} to {100 * r.drop.high:+.1f})"
        lines.append(
            f"| {r.model} | {r.products} | {r.rms:.4f} | {r.kl:.5f} | {100 * r.top1.value:.1f} | {drop} | "
            f"{100 * r.agreement.value:.1f} | {r.cpu_ms:.2f} | {r.to_two} |"
        )
    return "\n".join(lines) + "\n"


def built(program: Program, target: Target, calibration: np.ndarray, folder: Path) -> Logits:
    """Return a build of a dense model as a function of an image."""
    folder.mkdir()
    runtime = backend(target.backend)
    quantized, plan = quantize(program, target, calibration)
    source = Source(program=quantized, plan=plan, model=assemble(quantized, plan, gating="open"), target=target)
    runtime.build(source, folder)
    runner = runtime.load(folder, threads=1)
    # The runner writes its next logits over these.
    return lambda image: runner.run(image)[0].copy()


@click.command(epilog="Example: python -m benchmarks.int16_products -o reports/reference")
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(MODELS)), default=tuple(MODELS))
@click.option("--target", "name", default="x86-64-v3-tvm", show_default=True, help="Of this machine, without VNNI.")
@click.option("--images", default=1000, show_default=True, type=click.IntRange(2), help="Labelled images.")
@click.option("--calibration", default=300, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--rounds", default=60, show_default=True, type=click.IntRange(6), help="Timed rounds.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(models: tuple[str, ...], name: str, images: int, calibration: int, rounds: int, out: Path) -> None:
    """Write int16-products.json and .md; on a CPU that halves its vectors int16-products-128bit."""
    data, before, target = data_folder(), snapshot(), load_target(name)
    if target.int16_products == 2:
        raise click.BadParameter(f"{name} adds two products in 16 bits; name a target with more")
    rows: tuple[Row, ...] = ()
    for key in models:
        program = from_timm(MODELS[key], weights=data / f"{MODELS[key]}.safetensors")
        seen = load_images(data / "imagenet-sample-1000.tar", program.spec.image, limit=calibration).images
        labelled = load_images(data / "imagenet-val-1000.tar", program.spec.image, limit=images, labelled=True)
        plain = reference(assemble(program, gating="open"))
        shown = track(range(images), f"{key}, float")
        logits = np.concatenate([plain.run(labelled.images[i : i + 1])[0].copy() for i in shown])
        with tempfile.TemporaryDirectory() as folder:
            builds = {
                products: built(program, replace(target, int16_products=products), seen, Path(folder) / str(products))
                for products in KINDS
            }
            rows += measure(key, builds, logits, labelled, rounds)
    machine = environment(
        before,
        snapshot(),
        runtime="tvm",
        runtime_version=", ".join(f"{k} {v}" for k, v in backend("tvm").versions().items()),
        inference_precision=target.inference_precision,
        threads=1,
    )
    told = f"python -m benchmarks.int16_products --images {images} --calibration {calibration} --rounds {rounds}"
    report = Report(
        command=told + "".join(f" --model {key}" for key in models if len(models) < len(MODELS)),
        machine=machine,
        target=name,
        images=images,
        calibration=calibration,
        rounds=rounds,
        rows=rows,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{NAME}{suffix()}.json", dumps(report))
    write_atomic(out / f"{NAME}{suffix()}.md", render(report))
    click.echo(render(report))


if __name__ == "__main__":
    main()
