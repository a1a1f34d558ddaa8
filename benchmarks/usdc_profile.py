"""Where the time of a training step goes, and what leaving out unread token rows saves.

    EDGEVIT_DATA=DIR python -m benchmarks.usdc_profile --dense out/usdc/dense/program -o reports/reference

One joint step (teacher, gates, masks, batch 256, one thread) under torch's profiler, then steps with and without the
rows that nothing reads, interleaved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import interleave, ratio
from benchmarks.usdc import COMPRESSED, SIZE, data
from edgevit.compress.budgets import split_budget
from edgevit.compress.training.batches import Batches
from edgevit.compress.training.distributed import World
from edgevit.compress.training.loss import task_loss
from edgevit.compress.usdc.hooks import StageHooks
from edgevit.compress.usdc.stages import prepare
from edgevit.images.labelled import open_labelled
from edgevit.program.program import Program, load_program
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Part:
    """One operator: its own CPU time as a share of the step's, and calls."""

    name: str
    share: float
    calls: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """The profile and the comparison."""

    command: str
    batch: int
    step_cpu_ms: float
    images_per_cpu_s: float
    trimmed: str
    runs: int
    parts: tuple[Part, ...]


def joint_step(dense: Program, batch: int) -> Callable[[bool], None]:
    """A function that does the forward and backward pass of one joint step, trimmed or not."""
    recipe, budgets = COMPRESSED, split_budget(0.5, None, COMPRESSED.static_share)
    source = Batches(
        open_labelled(data("cifar10-train.npz")), dense.spec.image, batch=batch, seed=0, augment=recipe.augment
    )
    images, labels = next(source.epoch(0))
    blank = np.zeros((4, dense.spec.image.height, dense.spec.image.width, 3), np.uint8)
    model, teacher = Vit(prepare(dense, budgets, blank, recipe)), Vit(dense).eval().requires_grad_(False)
    hooks = StageHooks(model, dense.spec, budgets, recipe, World(), joint=True)

    def step(trim: bool) -> None:
        hooks.begin(0, 0, 0.1, batch)
        with torch.no_grad():
            wanted = teacher(images, trim=trim)
        logits = model(images, hooks.decide, hooks.tap, trim=trim)
        loss = task_loss(logits, labels, wanted, weight=recipe.teacher, temperature=recipe.temperature, smoothing=0.0)
        torch.autograd.backward(loss + hooks.penalty())
        hooks.observe()
        model.zero_grad()

    return step


def table(report: Report) -> str:
    """The report in Markdown."""
    lines = [
        "# A training step",
        "",
        f"`{report.command}`",
        "",
        f"Joint stage, ViT-Ti at {SIZE} x {SIZE}, batch {report.batch}, float32, one thread: {report.step_cpu_ms:.0f} "
        f"ms of CPU, {report.images_per_cpu_s:.0f} images per CPU second (median of {report.runs}).",
        "",
        "| operator | share of CPU time | calls |",
        "| --- | ---: | ---: |",
        *(f"| {p.name} | {p.share:.1%} | {p.calls} |" for p in report.parts),
        "",
        "The matrix products are the largest part. Those of the last MHSA and the last FFN whose token rows the head "
        f"never reads are left out: a step takes {report.trimmed} of the time it takes with them (paired, 95 % "
        "interval). What is left are products that the weights, their gradients and the teacher need.",
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--dense", required=True, type=click.Path(path_type=Path, exists=True), help="The dense Program.")
@click.option("--batch", default=256, show_default=True)
@click.option("--runs", default=9, show_default=True)
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(dense: Path, batch: int, runs: int, out: Path) -> None:
    """Profile one step and compare."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    step = joint_step(load_program(dense), batch)
    step(True)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(True)
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    whole = sum(e.self_cpu_time_total for e in events)
    times = interleave({"trimmed": lambda _: step(True), "whole": lambda _: step(False)}, 1, runs)
    median = times["trimmed"].median_ms
    report = Report(
        command=f"python -m benchmarks.usdc_profile --batch {batch} --runs {runs}",
        batch=batch,
        step_cpu_ms=median,
        images_per_cpu_s=1000 * batch / median,
        trimmed=str(ratio(times["trimmed"], times["whole"])),
        runs=runs,
        parts=tuple(Part(name=e.key, share=e.self_cpu_time_total / whole, calls=e.count) for e in events[:SHOWN]),
    )
    write_atomic(out / "usdc-profile.json", dumps(report))
    write_atomic(out / "usdc-profile.md", table(report))
    click.echo(table(report))


if __name__ == "__main__":
    main()
