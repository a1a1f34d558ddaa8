"""What a model executes on ARM processors, per runtime, in float and in int8, with and without gates: under emulation.

    edgevit device setup qemu --runtime onnxruntime --runtime openvino
    python -m benchmarks.arm --work out/arm -o reports/reference

Counted instructions, an estimated range of cycles, memory, and whether the outputs are those of the machine that built
the bundle. Two dense blocks of a ViT-Ti at 224 x 224 stand for the whole: what is executed depends on shapes, and for
GELU on how wide steps of 8 bits are, so their weights are random, and twelve blocks would execute six times as much.
The targets' choice between float and int8 per processor is read off these counts (`int8_pays`), and
tests/benchmarks/test_arm.py holds the target files against it. Bundles and measurements are kept in --work: a run that
was stopped goes on where it was. `--only` counts some builds anew, such as `dense-onnxruntime-int8`, and keeps the
other rows of a table that is there. What builds of the runtimes' own tools execute: benchmarks/arm_peers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import click
import numpy as np

from benchmarks.bundles import build_bundle
from benchmarks.estimate_error import ERRORS, Checked, read_errors
from benchmarks.kept import read_rows
from edgevit.api.load import DEFAULT_PROGRAM
from edgevit.bundle.read import open_bundle
from edgevit.devices.machine import find
from edgevit.devices.profile import profile
from edgevit.frontends.resolve import resolve
from edgevit.images.image_set import load_images
from edgevit.program.program import Program, expected_shapes
from edgevit.schema.arm_cpus import ARM_CPUS
from edgevit.schema.measurement import CycleEstimate, HeapPeaks, Measurement
from edgevit.schema.measurement_file import read_measurement, write_measurement
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped
from edgevit.util.strict_json import dumps, write_atomic

# Processor to what boards with it are called in target names.
BOARDS = {"cortex-a72": "rpi4", "cortex-a76": "rpi5", "armv8.6-i8mm": "armv8.6-i8mm"}
DENSE, MERGED = "2 dense ViT-Ti blocks", "shipped ViT-Ti, tokens merged"
GATED = "shipped ViT-Ti for CIFAR-10, pruned, one gate"
SHIPPED = {MERGED: DEFAULT_PROGRAM, GATED: "vit_tiny_cifar10"}
KINDS = {DENSE: "dense", MERGED: "merged", GATED: "gated"}
# Model, runtime, int8.
BUILDS = (
    (DENSE, "onnxruntime", True),
    (DENSE, "onnxruntime", False),
    (MERGED, "onnxruntime", True),
    (DENSE, "openvino", True),
    (DENSE, "openvino", False),
    (GATED, "onnxruntime", True),
    (GATED, "onnxruntime", False),
    (GATED, "openvino", True),
    (GATED, "openvino", False),
)
BLOCKS = 2
RUNTIMES = ("onnxruntime", "openvino")
CALIBRATION = 8
TIMEOUT_S = 3000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One build on one processor. Instructions per inference; parity as largest logit error and what is allowed."""

    model: str
    backend: str
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
    heap: HeapPeaks | None
    bound_bytes: int | None
    estimate: CycleEstimate | None
    emulator: str
    runtime: str


def int8_share(rows: Sequence[Row], cpu: str, runtime: str) -> float:
    """Instructions of the dense model in int8 over those in float."""
    counts = {row.int8: row.all_open for row in rows if (row.cpu, row.model, row.backend) == (cpu, DENSE, runtime)}
    return counts[True] / counts[False]


def int8_pays(rows: Sequence[Row], cpu: str, runtime: str) -> bool:
    """Whether a target for a processor should choose int8: its weights are a quarter, and no bound of cycles is above.

    Not every instruction costs alike, so their count does not decide.
    """
    return max(cycles_shares(rows, cpu, runtime)) <= 1.0


def cycles_shares(rows: Sequence[Row], cpu: str, runtime: str) -> tuple[float, float]:
    """The lower and the upper bound of cycles of the dense model in int8, each over that in float."""
    kept = [row for row in rows if (row.cpu, row.model, row.backend) == (cpu, DENSE, runtime)]
    found = {row.int8: row.estimate.paths[0] for row in kept if row.estimate}
    lower = found[True].lower_cycles / found[False].lower_cycles
    return lower, found[True].upper_cycles / found[False].upper_cycles


def measure(work: Path, model: str, backend: str, cpu: str, images: int, *, int8: bool) -> Row:
    """Run one bundle on one emulated processor, or read what was measured before."""
    folder = build(work, model, backend, int8=int8)
    kept = work / f"{folder.name}-{cpu}.json"
    with open_bundle(folder) as bundle:
        digest = bundle.sha256
    if not kept.exists() or read_measurement(kept).bundle_sha256 != digest:
        source = shipped("calibration") / "shipped.toml" if model in SHIPPED else None
        write_measurement(
            profile(folder, source, find(f"qemu:{cpu}"), runs=images if source else 1, timeout_s=TIMEOUT_S), kept
        )
    return row(read_measurement(kept), model, backend, cpu, int8=int8)


def row(found: Measurement, model: str, backend: str, cpu: str, *, int8: bool) -> Row:
    """What the table keeps of a measurement."""
    emulation = found.emulation
    assert emulation and emulation.instructions, "instructions were not counted"
    paths = {path.path: path for path in emulation.instructions}
    opened = paths.get("all_open", paths["real"])
    worst = max(emulation.golden, key=lambda case: case.logit_error)
    return Row(
        model=model,
        backend=backend,
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
        heap=emulation.heap,
        bound_bytes=emulation.bound_bytes,
        estimate=emulation.estimate,
        emulator=emulation.emulator,
        runtime=f"{found.environment.runtime} {found.environment.runtime_version}",
    )


def render(rows: Sequence[Row], errors: Sequence[Checked]) -> str:
    """The tables, the decision per processor, and how far the estimate is off, as Markdown."""
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in rows))
    lines = [
        "# ARM processors, emulated",
        "",
        f"{runtimes}, one thread, {rows[0].emulator}: counted and estimated, never timed.",
        "Regenerate: `python -m benchmarks.arm --work out/arm`, and for the last table, before it,",
        "`python -m benchmarks.estimate_error --work out/arm`.",
        "",
        "## Executed instructions",
        "",
        "Per inference, in millions. Products are exact; the rest, with Python's part and the accountant's, moves by",
        "about 1 %. Where tokens merge, all open merges as few as may be, all skipped as many.",
        "",
        f"| {_HEAD} | all open | all skipped | real (n) | multiply-add | dot | matrix | widening |",
        f"{'| --- ' * 11}|",
    ]
    for r in rows:
        counts = " | ".join(_millions(r.classes.get(name)) for name in ("multiply_add", "dot", "matrix", "widening"))
        lines.append(
            f"| {_key(r)} | {_millions(r.all_open)} | {_millions(r.all_skipped)} | "
            f"{_millions(r.real)} ({r.real_images}) | {counts} |"
        )
    lines += _cycles(rows) + _memory(rows)
    lines += [
        "",
        "## Float or int8",
        "",
        "With int8 weights a model is a quarter as large, so a target takes int8 where neither bound of cycles of the",
        "dense model is above float's:",
        "",
    ]
    for cpu, runtime in product(dict.fromkeys(r.cpu for r in rows), RUNTIMES):
        choice = "int8" if int8_pays(rows, cpu, runtime) else "float"
        lower, upper = cycles_shares(rows, cpu, runtime)
        told = f"{lower:.0%} of the lower bound, {upper:.0%} of the upper, so {choice}"
        told += f"; {int8_share(rows, cpu, runtime):.0%} of the instructions"
        lines.append(f"- {cpu} ({ARM_CPUS[cpu].sold_as}), {runtime}: {told}")
    return "\n".join([*lines, *_errors(errors)]) + "\n"


_HEAD = "model | runtime | type | processor"


def _key(r: Row) -> str:
    return f"{r.model} | {r.backend} | {'int8' if r.int8 else 'float'} | {r.cpu}"


def _cycles(rows: Sequence[Row]) -> list[str]:
    """The range of cycles per path, and what it rests on."""
    lines = [
        "",
        "## Estimated cycles",
        "",
        "Per inference, in millions, as a range: an estimate, no measurement.",
        "",
        f"| {_HEAD} | all open | all skipped | real |",
        f"{'| --- ' * 7}|",
    ]
    for r in rows:
        if r.estimate is None:
            continue
        told = {
            path.path: f"{path.lower_cycles / 1e6:.1f} to {path.upper_cycles / 1e6:.1f}" for path in r.estimate.paths
        }
        real = told["real"]
        lines.append(f"| {_key(r)} | {told.get('all_open', real)} | {told.get('all_skipped', '-')} | {real} |")
    for cpu in dict.fromkeys(r.cpu for r in rows):
        estimate = next(r.estimate for r in rows if r.cpu == cpu and r.estimate)
        lines += ["", f"{cpu}, by {estimate.tool}; caches: {ARM_CPUS[cpu].core.source}:", ""]
        lines += [f"- {assumption}" for assumption in estimate.assumptions]
    return lines


def _memory(rows: Sequence[Row]) -> list[str]:
    """Memory against the bound, parity, and what the check of skipping found."""
    lines = [
        "",
        "## Memory and outputs",
        "",
        "Heap: over what the process held before it loaded the model, so with what the runtime itself takes, which the",
        "bound, computed on x86, leaves out. The arena is ONNX Runtime's own figure.",
        "",
        f"| {_HEAD} | heap running / loading (bound) | arena peak (bound) | largest logit error (allowed) | skipping |",
        f"{'| --- ' * 8}|",
    ]
    for r in rows:
        heap = f"{_mb(r.heap.running_bytes)} / {_mb(r.heap.loading_bytes)}" if r.heap else "-"
        lines.append(
            f"| {_key(r)} | {heap} ({_mb(r.bound_bytes)}) MB | {_mb(r.arena_peak_bytes)} ({_mb(r.arena_bytes)}) MB | "
            f"{r.logit_error:.3g} ({r.allowed:.3g}) | {r.skip} |"
        )
    return lines


def _errors(errors: Sequence[Checked]) -> list[str]:
    """The same method on x86-64, against the cycles that it really takes."""
    if not errors:
        return []
    lines = [
        "",
        "## How far the estimate is off",
        "",
        "The same counter, cache model and llvm-mca on an x86-64 core "
        f"({errors[0].core}, {errors[0].clock_mhz:.0f} MHz), two dense",
        f"blocks, against {errors[0].runs} native runs each; cycles in millions. No ARM core was at hand. Native",
        "cycles are CPU time times the clock, which a chain of multiplications timed beside each run tells;",
        "other work ran on the machine, so the least is nearer to the truth than the median.",
        "",
        "| bundle | M instructions | estimate | if no cache missed | native: least, median | least / lower, / upper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for e in errors:
        low, hits, high, least, median = (
            cycles / 1e6 for cycles in (e.lower_cycles, e.hits_cycles, e.upper_cycles, e.least_cycles, e.median_cycles)
        )
        lines.append(
            f"| {e.bundle} | {e.instructions / 1e6:.1f} | {low:.1f} to {high:.1f} | {low:.1f} to {hits:.1f} | "
            f"{least:.1f}, {median:.1f} | {least / low:.2f}, {least / high:.2f} |"
        )
    return lines


def _mb(count: int | None) -> str:
    return f"{count / 1e6:.2f}" if count else "-"


def _millions(count: float | None) -> str:
    return f"{count / 1e6:.1f}" if count else "-"


def dense_blocks(blocks: int = BLOCKS) -> Program:
    """The first blocks of the shipped Program's model, nothing pruned, no gates, random weights.

    LayerNorms scale by one, as trained ones about do: else the steps behind GELU were far finer than there.
    """
    spec = resolve(DEFAULT_PROGRAM).spec
    whole = tuple(
        replace(branch, kept=tuple(range(branch.units_total)), gate=None, skip=False)
        for branch in spec.branches[: 2 * blocks]
    )
    spec = replace(spec, name="vit_tiny_blocks", branches=whole, merges=())
    draw = np.random.default_rng(0)
    weights = {
        name: (draw.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in expected_shapes(spec).items()
    }
    weights |= {name: np.ones_like(array) for name, array in weights.items() if name.endswith("norm.weight")}
    return Program(spec=spec, weights=weights)


def build_name(model: str, runtime: str, *, int8: bool) -> str:
    """Return what a build is called."""
    return f"{KINDS[model]}-{runtime}-{'int8' if int8 else 'float'}"


def kept_rows(path: Path) -> dict[tuple[str, str, bool, str], Row]:
    """Return the rows of a table by model, runtime, whether int8, and processor.

    Raises:
        ClickException: there is no such table, or it is damaged.
    """
    if not path.exists():
        raise click.ClickException(f"{path} is missing, so there are no rows to keep; run without --only")
    return {(row.model, row.backend, row.int8, row.cpu): row for row in read_rows(path, Row, "run without --only")}


def build(work: Path, model: str, runtime: str, *, int8: bool) -> Path:
    """The bundle of one model for one runtime, in int8 or float; one that is there is kept."""
    folder = work / build_name(model, runtime, int8=int8)
    if folder.exists():
        return folder
    program = resolve(SHIPPED[model]) if model in SHIPPED else dense_blocks()
    images = load_images(
        shipped("calibration") / "shipped.toml", program.spec.image, limit=CALIBRATION if model == DENSE else None
    )
    # Random weights name no class: their accuracy says nothing.
    target = replace(load_target(f"rpi5-{runtime}"), int8=int8, min_agreement=0.0, max_top1_drop=1.0)
    return build_bundle(program, target, images, folder).folder


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="Built bundles, kept.")
@click.option("--images", default=2, show_default=True, type=click.IntRange(2), help="Real images, Programs that ship.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([build_name(model, runtime, int8=int8) for model, runtime, int8 in BUILDS]),
    help="Count this build anew, and keep the table's other rows; may be given again.",
)
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, images: int, only: tuple[str, ...], out: Path) -> None:
    """Build, run on every emulated processor, and write arm.json and arm.md."""
    out.mkdir(parents=True, exist_ok=True)
    kept = kept_rows(out / "arm.json") if only else {}
    rows = []
    for model, backend, int8 in BUILDS:
        for cpu in BOARDS:
            if only and build_name(model, backend, int8=int8) not in only:
                rows.append(kept[model, backend, int8, cpu])
                continue
            click.echo(f"{model}, {backend}, {'int8' if int8 else 'float'}, {cpu}", err=True)
            rows.append(measure(work, model, backend, cpu, images, int8=int8))
    write_atomic(out / "arm.json", dumps(rows))
    write_atomic(out / "arm.md", render(rows, read_errors(out / ERRORS)))


if __name__ == "__main__":
    main()
