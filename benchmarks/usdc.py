"""Training static pruning and dynamic gates, together and apart, on CIFAR-10 with ViT-Ti.

    EDGEVIT_DATA=DIR python -m benchmarks.usdc run --work out/usdc --slots 2
    EDGEVIT_DATA=DIR python -m benchmarks.usdc report --work out/usdc -o reports/reference

EDGEVIT_DATA holds vit_tiny's weights, cifar10-train.npz and cifar10-test.npz. `run` trains what is not there yet, each
run in a process of its own on one thread, and goes on with those that were interrupted. `report` evaluates finished
runs on the whole test set at several inference batch sizes and draws usdc.json, usdc.md and usdc.png.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.usdc_report import draw, table
from edgevit.build.prediction import predict
from edgevit.compress.budgets import split_budget
from edgevit.compress.gate.judge import answers
from edgevit.compress.training.batches import evaluation
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc.inputs import Training
from edgevit.compress.usdc.stages import with_crop
from edgevit.frontends.resolve import resolve
from edgevit.images.labelled import open_labelled
from edgevit.pipeline import train
from edgevit.program.macs import total_macs
from edgevit.program.program import Program, load_program
from edgevit.schema.target import load_target
from edgevit.util import strict_json
from edgevit.util.strict_json import dumps, write_atomic

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SIZE = 48
BATCHES = (256, 64, 32, 8, 2, 1)
DENSE = TrainRecipe(epochs_joint=0, epochs_recover=4, rate_recover=3e-4)
COMPRESSED = TrainRecipe(epochs_joint=1, epochs_recover=4, rate_joint=3e-4, rate_recover=3e-4)
STATIC, DYNAMIC, BOTH = 1.0, 0.0, 0.85
NAMES = {STATIC: "static", DYNAMIC: "dynamic", BOTH: "usdc"}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run: expected MACs, static share of the saving, gate groups, seed, epochs of recovery, tokens.

    With MACs 1 nothing is removed: the dense model trained on as long as the others, for a fair comparison.
    """

    macs: float
    share: float = BOTH
    groups: str = "recursive"
    seed: int = 0
    epochs: int = COMPRESSED.epochs_recover
    tokens: float = COMPRESSED.tokens

    @property
    def name(self) -> str:
        if self.macs == 1:
            return f"longer-100-seed{self.seed}"
        method = NAMES[self.share] if self.epochs == COMPRESSED.epochs_recover else "long"
        method = "tokens" if self.tokens else method
        groups = "" if self.share == STATIC else "-" + self.groups.replace(" ", "_")
        return f"{method}-{self.macs:.0%}{groups}-seed{self.seed}".replace("%", "")


LONG = 3 * COMPRESSED.epochs_recover
E2_MODES = ("sample", "batch", "average 32", "random 1 64", "halving")
EXPERIMENTS = (
    *(Experiment(macs=0.5, share=s) for s in (BOTH, STATIC, DYNAMIC)),
    Experiment(macs=1.0),
    Experiment(macs=0.5, groups="sample", epochs=LONG),
    *(Experiment(macs=0.5, groups=g) for g in E2_MODES),
    *(Experiment(macs=0.5, share=s, seed=1) for s in (BOTH, STATIC, DYNAMIC)),
    *(Experiment(macs=m, share=s) for m in (0.35, 0.7) for s in (BOTH, STATIC, DYNAMIC)),
    Experiment(macs=0.45),  # for bundles at 1.8 times the speed
    Experiment(macs=0.5, tokens=0.9),
)


def data(name: str) -> Path:
    """A file of EDGEVIT_DATA."""
    return Path(os.environ["EDGEVIT_DATA"]) / name


def pretrained() -> Program:
    """ViT-Ti with its ImageNet weights, the input size of the experiment and a new head."""
    program = with_crop(resolve(MODEL, weights=data(f"{MODEL}.safetensors"), image_size=(SIZE, SIZE)), 1.0)
    head = replace(program.spec.head, classes=10)
    zeros = {"head.weight": np.zeros((program.spec.dim, 10)), "head.bias": np.zeros(10)}
    return program.with_weights(zeros, replace(program.spec, head=head, labels=()))


def run_one(work: Path, experiment: Experiment | None) -> None:
    """Train, or go on training, one experiment; None is the dense model."""
    name = "dense" if experiment is None else experiment.name
    folder, began = work / name, time.process_time()
    if experiment is None:
        dense, teacher, recipe, budgets = pretrained(), None, DENSE, split_budget(1.0, None, STATIC)
    else:
        dense = teacher = load_program(work / "dense" / "program")
        e = experiment
        recipe = replace(COMPRESSED, groups=e.groups, seed=e.seed, epochs_recover=e.epochs, tokens=e.tokens)
        if experiment.macs == 1:
            recipe = replace(recipe, epochs_joint=0, epochs_recover=recipe.epochs_joint + recipe.epochs_recover)
        budgets = split_budget(experiment.macs, None, experiment.share)
    job = Training(
        dense=dense,
        teacher=teacher,
        data=open_labelled(data("cifar10-train.npz")),
        budgets=budgets,
        recipe=recipe,
        folder=folder,
        teacher_cache=work / "teacher",
    )
    train(job, resume=(folder / "checkpoint.pt").exists(), say=lambda line: click.echo(f"{name} {line}"))
    used = {
        "cpu_seconds": time.process_time() - began,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "recipe": strict_json.to_data(recipe),
    }
    write_atomic(folder / "done.json", dumps(used))


def judge(work: Path, name: str) -> dict[str, Any]:
    """A finished run's row: accuracy at every batch size, MACs, sizes; kept beside the run."""
    kept = work / name / "row.json"
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        return row
    program, dense = load_program(work / name / "program"), load_program(work / "dense" / "program")
    images, labels = evaluation(open_labelled(data("cifar10-test.npz")), program.spec.image)
    target = load_target("x86-64-onnxruntime")
    sizes = BATCHES if program.spec.gated else (1,)
    found = {b: answers(program, images, batch=b, description=f"{name} at batch {b}") for b in sizes}
    whole = total_macs(dense.spec)
    row = {
        "name": name,
        "images": len(labels),
        "top1": {str(b): a.top1(labels) for b, a in found.items()},
        "macs": {str(b): a.macs / whole for b, a in found.items()},
        "static_macs": total_macs(program.spec) / whole,
        "weights": sum(a.size for a in program.weights.values()),
        "dense_weights": sum(a.size for a in dense.weights.values()),
        "bound_bytes": predict(program, target).bound_bytes,
        "dense_bound_bytes": predict(dense, target).bound_bytes,
        "heads": sum(b.units for b in program.spec.branches if b.kind == "mhsa"),
        "neurons": sum(b.units for b in program.spec.branches if b.kind == "ffn"),
        "branches": sum(not b.removed for b in program.spec.branches),
        "gates_that_vary": int(((found[1].ran.mean(axis=0) > 0.01) & (found[1].ran.mean(axis=0) < 0.99)).sum()),
        "open": [round(float(rate), 3) for rate in found[1].ran.mean(axis=0)],
        "images_per_s": speeds(work / name / "metrics.csv"),
        **json.loads((work / name / "done.json").read_text()),
    }
    write_atomic(kept, dumps(row))
    return row


def speeds(metrics: Path) -> dict[str, float]:
    """Median images per second of each stage that a run had; they depend on what else the machine did."""
    with metrics.open(newline="") as file:
        rows = [(int(float(row["stage"])), float(row["images_per_s"])) for row in csv.DictReader(file)]
    names = ("joint", "recover")
    return {names[s]: statistics.median(v for stage, v in rows if stage == s) for s in sorted({s for s, _ in rows})}


@click.group()
def main() -> None:
    """Static, dynamic and both: see the top of this file."""


WORK = click.option("--work", default="out/usdc", type=click.Path(path_type=Path), help="Where runs are kept.")


@main.command()
@WORK
@click.option("--slots", default=2, show_default=True, help="Runs at the same time.")
@click.option("--only", multiple=True, help="Names of experiments; all by default.")
@click.option("--minutes", type=float, help="Start no run after this long.")
def run(work: Path, slots: int, only: tuple[str, ...], minutes: float | None) -> None:
    """Train everything that is not finished, the dense model first."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    waiting = [None, *(e for e in EXPERIMENTS if not only or e.name in only)]
    waiting = [e for e in waiting if not (work / (e.name if e else "dense") / "done.json").exists()]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        running = [p for p in running if p.poll() is None]
        late = minutes is not None and time.monotonic() - began > 60 * minutes
        dense_first = not (work / "dense" / "done.json").exists() and running
        if waiting and len(running) < slots and not dense_first and not late:
            name = waiting[0].name if waiting[0] else "dense"
            threads = str(slots if waiting.pop(0) is None else 1)
            command = [sys.executable, "-m", "benchmarks.usdc", "one", name, "--work", str(work)]
            log = (work / f"{name}.log").open("ab")
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        elif late and not running:
            return
        else:
            time.sleep(2)


@main.command()
@click.argument("name")
@WORK
def one(name: str, work: Path) -> None:
    """Train one experiment by name, or `dense`."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run_one(work, next((e for e in EXPERIMENTS if e.name == name), None))


@main.command()
@WORK
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def report(work: Path, out: Path) -> None:
    """Evaluate what is finished and draw the tables."""
    names = ["dense", *(e.name for e in EXPERIMENTS)]
    rows = [judge(work, name) for name in names if (work / name / "done.json").exists()]
    document = {"command": "python -m benchmarks.usdc run && python -m benchmarks.usdc report", "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "usdc.json", dumps(document))
    write_atomic(out / "usdc.md", table(rows))
    draw(rows, out / "usdc.png")
    click.echo(f"{out / 'usdc.md'}: {len(rows)} of {len(names)} runs")


if __name__ == "__main__":
    main()
