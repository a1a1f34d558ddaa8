"""What a model executes on ARM processors, in float and in int8, with and without gates: counted under emulation.

    edgevit device setup qemu
    python benchmarks/arm.py --work out/arm -o reports/reference

Two dense blocks of a ViT-Ti at 224 x 224 stand for the whole: what is executed depends on shapes alone, so their
weights are random and twelve blocks would execute six times as much. The targets' choice between float and int8 per
processor is read off these counts (`int8_pays`), and tests/benchmarks/test_arm.py holds the target files against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from edgevit import emulated, pipeline
from edgevit.bundle.read import open_bundle
from edgevit.bundlespec import Measurement
from edgevit.data.images import load_images
from edgevit.device.emulator import CPUS
from edgevit.job import Job, default_program, run_build
from edgevit.models.program import Program, expected_shapes
from edgevit.models.resolve import resolve
from edgevit.pipeline import weights_digest
from edgevit.recipe import Recipe
from edgevit.resources import shipped
from edgevit.serial import dumps, write_atomic
from edgevit.targets import load_target

# Target of the device with this processor.
TARGETS = {
    "cortex-a72": "rpi4-onnxruntime",
    "cortex-a76": "rpi5-onnxruntime",
    "armv8.6-i8mm": "armv8.6-i8mm-onnxruntime",
}
FLOAT_TARGET, INT8_TARGET = "rpi4-onnxruntime", "rpi5-onnxruntime"
DENSE, GATED = "2 dense ViT-Ti blocks", "shipped ViT-Ti, pruned and gated"
BUILDS = ((DENSE, INT8_TARGET), (DENSE, FLOAT_TARGET), (GATED, INT8_TARGET))
BLOCKS = 2
# int8 costs accuracy, and not every instruction costs alike: it must save at least a quarter of them.
PAYS = 0.75
CALIBRATION = 8
TIMEOUT_S = 3000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One build on one processor. Instructions per inference; parity as largest logit error and what is allowed."""

    model: str
    int8: bool
    cpu: str
    all_open: float
    all_skipped: float | None
    real: float
    real_images: int
    branches_open: float
    classes: dict[str, float]
    logit_error: float
    allowed: float
    skip: str
    arena_peak_bytes: int | None
    arena_bytes: int | None
    emulator: str
    runtime: str


def int8_share(rows: Sequence[Row], cpu: str) -> float:
    """Instructions of the dense model in int8 over those in float."""
    counts = {row.int8: row.all_open for row in rows if row.cpu == cpu and row.model == DENSE}
    return counts[True] / counts[False]


def int8_pays(rows: Sequence[Row], cpu: str) -> bool:
    """Whether int8 saves so much on a processor that a target for it should choose int8."""
    return int8_share(rows, cpu) < PAYS


def measure(folder: Path, model: str, cpu: str, images: int) -> Row:
    """Run one bundle on one emulated processor."""
    with open_bundle(folder) as bundle:
        int8 = bool(bundle.manifest.target["int8"])
    source = None if images == 1 else shipped("calibration") / "shipped.toml"
    found = emulated.profile(folder, source, f"qemu:{cpu}", runs=images, timeout_s=TIMEOUT_S)
    return row(found, model, cpu, int8=int8)


def row(found: Measurement, model: str, cpu: str, *, int8: bool) -> Row:
    """What the table keeps of a measurement."""
    emulation = found.emulation
    assert emulation and emulation.instructions, "instructions were not counted"
    paths = {path.path: path for path in emulation.instructions}
    opened = paths.get("all_open", paths["real"])
    worst = max(emulation.golden, key=lambda case: case.logit_error)
    return Row(
        model=model,
        int8=int8,
        cpu=cpu,
        all_open=opened.total,
        all_skipped=paths["all_skipped"].total if "all_skipped" in paths else None,
        real=paths["real"].total,
        real_images=paths["real"].images,
        branches_open=paths["real"].branches_open,
        classes=opened.classes,
        logit_error=worst.logit_error,
        allowed=worst.allowed,
        skip=emulation.skip,
        arena_peak_bytes=emulation.arena_peak_bytes,
        arena_bytes=emulation.arena_bytes,
        emulator=emulation.emulator,
        runtime=f"{found.environment.runtime} {found.environment.runtime_version}",
    )


def render(rows: Sequence[Row]) -> str:
    """The table and the decision per processor, as Markdown."""
    lines = [
        "# Executed instructions on ARM",
        "",
        f"Per inference, in millions, {rows[0].runtime}, one thread, {rows[0].emulator}: counted, not timed.",
        "Products are exact, the rest moves by about 1 %, Python's own part.",
        "Regenerate: `python benchmarks/arm.py --work out/arm`.",
        "",
        "| model | type | processor | all open | all skipped | real (n) | multiply-add | dot | matrix | widening |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        counts = " | ".join(_millions(r.classes.get(name)) for name in ("multiply_add", "dot", "matrix", "widening"))
        lines.append(
            f"| {r.model} | {'int8' if r.int8 else 'float'} | {r.cpu} | {_millions(r.all_open)} | "
            f"{_millions(r.all_skipped)} | {_millions(r.real)} ({r.real_images}) | {counts} |"
        )
    lines += [
        "",
        "| model | type | processor | largest logit error (allowed) | arena peak (bound computed on x86) | skipping |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        peak = f"{(r.arena_peak_bytes or 0) / 1e6:.2f} MB ({(r.arena_bytes or 0) / 1e6:.2f})"
        lines.append(
            f"| {r.model} | {'int8' if r.int8 else 'float'} | {r.cpu} | {r.logit_error:.3g} ({r.allowed:.3g}) | "
            f"{peak} | {r.skip} |"
        )
    lines += [
        "",
        f"A target takes int8 where the dense model executes less than {PAYS:.0%} of its float instructions:",
        "",
    ]
    for cpu in dict.fromkeys(r.cpu for r in rows):
        choice = "int8" if int8_pays(rows, cpu) else "float"
        lines.append(f"- {cpu} ({CPUS[cpu].sold_as}): {int8_share(rows, cpu):.0%}, so {choice}")
    return "\n".join(lines) + "\n"


def _millions(count: float | None) -> str:
    return f"{count / 1e6:.1f}" if count else "-"


def dense_blocks() -> Program:
    """The first BLOCKS blocks of the shipped Program's model, nothing pruned, no gates, random weights."""
    spec = resolve(str(default_program())).spec
    whole = tuple(
        replace(branch, kept=tuple(range(branch.units_total)), gate=None, skip=False)
        for branch in spec.branches[: 2 * BLOCKS]
    )
    spec = replace(spec, name="vit_tiny_blocks", branches=whole)
    draw = np.random.default_rng(0)
    weights = {
        name: (draw.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in expected_shapes(spec).items()
    }
    return Program(spec=spec, weights=weights)


def build(work: Path, model: str, target: str) -> Path:
    """The bundle of one model for one target; one that is there is kept."""
    folder = work / f"{'dense' if model == DENSE else 'gated'}-{target}"
    if folder.exists():
        return folder
    if model == GATED:
        return run_build(Job(model=None, target=target, output=folder)).folder
    program = dense_blocks()
    images = load_images(shipped("calibration") / "shipped.toml", program.spec.image, limit=CALIBRATION)
    recipe = Recipe(
        model=program.spec.name,
        weights_sha256=weights_digest(program),
        prune=0.0,
        gate=1.0,
        seed=0,
        calibration="shipped.toml",
        calibration_images=CALIBRATION,
        calibration_sha256=images.digest,
    )
    # Random weights name no class: their accuracy says nothing.
    lenient = replace(load_target(target), min_agreement=0.0, max_top1_drop=1.0)
    return pipeline.build(program, lenient, images, folder, recipe=recipe).folder


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="Built bundles, kept.")
@click.option("--images", default=4, show_default=True, type=click.IntRange(2), help="Real images for gated builds.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, images: int, out: Path) -> None:
    """Build, run on every emulated processor, and write arm.json and arm.md."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for model, target in BUILDS:
        folder = build(work, model, target)
        for cpu in TARGETS:
            click.echo(f"{model}, {target}, {cpu}", err=True)
            rows.append(measure(folder, model, cpu, images if model == GATED else 1))
            write_atomic(out / "arm.json", dumps(rows))
    write_atomic(out / "arm.md", render(rows))


if __name__ == "__main__":
    main()
