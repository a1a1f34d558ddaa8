"""Accuracy against MACs of pruning and of gates, without labels and without training the weights.

    EDGEVIT_DATA=DIR python benchmarks/compression_curve.py --model vit_tiny --model deit_tiny -o reports/reference

EDGEVIT_DATA holds `<timm name>.safetensors` of both models, imagenet-sample-1000.tar (calibration, labels unused) and
imagenet-val-1000.tar (evaluation). Every row is written to compression.json as soon as it is measured; with --resume
rows that are there already are kept. At the end compression.md and compression.png are drawn from the JSON.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.compression_report import Book, OutOfTime, Row, plot, table
from benchmarks.kept import read_array, read_program
from edgevit.compress.gate.threshold import expected_macs
from edgevit.compress.gate.train import train_gates
from edgevit.compress.prune.divergence import score
from edgevit.compress.prune.observe import collect
from edgevit.compress.prune.plan import plan_prune
from edgevit.compress.prune.refit import refit
from edgevit.compress.prune.shrink import shrink
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.program.macs import total_macs
from edgevit.program.program import Program, save_program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import write_atomic

MODELS = {"vit_tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "deit_tiny": "deit_tiny_patch16_224.fb_in1k"}
PRUNE = (0.1, 0.2, 0.3, 0.4)
GATE = (0.9, 0.8, 0.7)
BOTH = ((0.1, 0.9), (0.2, 0.8))
SCORED_IMAGES = 64
BATCH = 50
Choose = Callable[[int, Tensor], Tensor]  # branch index, stream -> bool [B], True = run


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all rows of one model share."""

    name: str
    dense: Program
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    reference: Tensor


@torch.no_grad()
def run(program: Program, images: np.ndarray, choose: Choose | None) -> tuple[Tensor, np.ndarray]:
    """Logits, and which branches ran for each image (bool `[n, branches]`); branches that are skipped do not run."""
    model = Vit(program).eval().requires_grad_(False)
    logits, ran = [], []
    for batch in batches(program.spec, images, BATCH):
        x = model.stem(batch)
        mask = np.tile([not b.removed for b in program.spec.branches], (len(batch), 1))
        for index, branch in enumerate(program.spec.branches):
            if branch.removed:
                x = x + model.skip_rows(branch)
            elif choose is None or branch.gate is None:
                x = x + model.branch(branch, x)
            else:
                chosen = choose(index, x)
                y = x + model.skip_rows(branch)
                if chosen.any():
                    y[chosen] = x[chosen] + model.branch(branch, x[chosen])
                x, mask[:, index] = y, chosen.numpy()
        logits.append(model.head(x))
        ran.append(mask)
    return torch.cat(logits), np.concatenate(ran)


def trained_choice(program: Program) -> Choose:
    hard = Vit(program).eval().requires_grad_(False).hard_gates()
    return lambda index, x: hard(index, x) > 0


def random_choice(program: Program, skipped: float, count: int, seed: int) -> Choose:
    """For every image its own random set of branches to skip, `skipped` of them on average."""
    rng, gated = np.random.default_rng(seed), [i for i, b in enumerate(program.spec.branches) if b.gate is not None]
    mask = np.ones((count, len(program.spec.branches)), bool)
    for row in mask:
        row[rng.permutation(gated)[: int(skipped + rng.random())]] = False
    position = dict.fromkeys(gated, 0)

    def choose(index: int, x: Tensor) -> Tensor:
        start = position[index]
        position[index] = start + len(x)
        return torch.from_numpy(mask[start : start + len(x), index])

    return choose


def measure(case: Case, program: Program, method: str, prune: float, gate: float, choose: Choose | None = None) -> Row:
    """Evaluate one Program on all labelled images."""
    start = time.perf_counter()
    logits, ran = run(program, case.images, choose)
    row = judge(case, logits, method, prune, gate)
    macs = expected_macs(program.spec, ran) / total_macs(case.dense.spec)
    return replace(row, macs=macs, open_branches=float(ran.sum(axis=1).mean()), seconds=time.perf_counter() - start)


def judge(case: Case, logits: Tensor, method: str, prune: float, gate: float) -> Row:
    """Accuracy of logits against labels and against the dense model; the costs are those of the dense model."""
    hits = float((logits.argmax(dim=1).numpy() == case.labels).mean())
    p, q = case.reference.log_softmax(dim=1), logits.log_softmax(dim=1)
    return Row(
        model=case.name,
        method=method,
        prune=prune,
        gate=gate,
        macs=1.0,
        top1=hits,
        standard_error=float(np.sqrt(hits * (1 - hits) / len(case.labels))),
        agreement=float((logits.argmax(1) == case.reference.argmax(1)).float().mean()),
        divergence=float((p.exp() * (p - q)).sum(dim=1).mean()),
        open_branches=float(len(case.dense.spec.branches)),
        seconds=0.0,
    )


def prune_rows(case: Case, book: Book, made: Made, *, compensated: bool) -> None:
    """Every prune level: the planned units cut out plainly and with repair, or (`compensated`) compensated only."""
    for method in ("compensated",) if compensated else ("repaired", "plain"):
        for fraction in PRUNE:
            if not book.has(case.name, f"prune, {method}", fraction, 1.0):
                program = made.pruned(case, fraction, method)
                book.add(measure(case, program, f"prune, {method}", fraction, 1.0))


def gate_rows(case: Case, book: Book, made: Made) -> None:
    for fraction, budget in (*((0.0, g) for g in GATE), *BOTH):
        method = "prune and gates" if fraction else "gates"
        if not book.has(case.name, method, fraction, budget):
            program = made.gated(case, fraction, budget)
            book.add(measure(case, program, method, fraction, budget, trained_choice(program)))


def random_rows(case: Case, book: Book, made: Made, seeds: int) -> None:
    """As many branches of the dense model skipped as gates skip, drawn for every image, with skip rows and without."""
    for budget in GATE:
        trained = next(r for r in book.rows if (r.model, r.method, r.gate) == (case.name, "gates", budget))
        for method in ("random, skip rows", "random, plain"):
            if book.has(case.name, method, 0.0, budget):
                continue
            # Its output linears are fitted to its own gates: of it only skip rows are taken.
            program = made.gated(case, 0.0, budget).with_weights(dict(case.dense.weights))
            skipped = len(program.spec.branches) - trained.open_branches
            if method == "random, plain":
                bare = tuple(replace(b, skip=False) for b in program.spec.branches)
                program = program.with_weights({}, replace(program.spec, branches=bare))
            rows = [
                measure(case, program, method, 0.0, budget, random_choice(program, skipped, len(case.images), seed))
                for seed in range(seeds)
            ]
            book.add(averaged(rows))


def averaged(rows: list[Row]) -> Row:
    """One row of several seeds; the note names each seed's top-1."""
    count, each = len(rows), ", ".join(f"{r.top1:.1%}" for r in rows)
    return replace(
        rows[0],
        macs=sum(r.macs for r in rows) / count,
        top1=sum(r.top1 for r in rows) / count,
        agreement=sum(r.agreement for r in rows) / count,
        divergence=sum(r.divergence for r in rows) / count,
        open_branches=sum(r.open_branches for r in rows) / count,
        seconds=sum(r.seconds for r in rows),
        note=f"{count} draw{'s' if count > 1 else ''} per image: {each}",
    )


def build_case(name: str, data: Path, limit: int, calibration: int, book: Book, made: Made) -> Case:
    timm_name = MODELS[name]
    dense = from_timm(timm_name, weights=data / f"{timm_name}.safetensors")
    known = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=calibration)
    held = load_images(data / "imagenet-val-1000.tar", dense.spec.image, limit=limit, labelled=True)
    assert held.labels is not None
    case = Case(
        name=name,
        dense=dense,
        calibration=known.images,
        images=held.images,
        labels=held.labels,
        reference=made.reference(f"{name}-{held.digest[:12]}", dense, held.images),
    )
    if not book.has(name, "dense", 0.0, 1.0):
        book.add(judge(case, case.reference, "dense", 0.0, 1.0))
    return case


class Made:
    """The compressed Programs, made once and kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pruned(self, case: Case, fraction: float, method: str) -> Program:
        """`method` is plain, compensated or repaired; all levels are made together, as they share the scores."""
        if not self._path(case, fraction, method).exists():
            statistics = collect(case.dense, case.calibration)
            scores = score(case.dense, case.calibration[:SCORED_IMAGES], statistics)
            for level in PRUNE:
                plan = plan_prune(scores, case.dense.spec, 1 - level)
                self._keep(case, level, "plain", shrink(case.dense, plan, None))
                small = shrink(case.dense, plan, statistics)
                self._keep(case, level, "compensated", small)
                self._keep(case, level, "repaired", refit(small, case.dense, case.calibration))
        return read_program(self._path(case, fraction, method))

    def gated(self, case: Case, fraction: float, budget: float) -> Program:
        what = f"gates-{budget:g}"
        if not self._path(case, fraction, what).exists():
            program = self.pruned(case, fraction, "repaired") if fraction else case.dense
            self._keep(case, fraction, what, train_gates(program, case.calibration, budget, teacher=case.dense))
        return read_program(self._path(case, fraction, what))

    def reference(self, name: str, dense: Program, images: np.ndarray) -> Tensor:
        """Logits of the dense model."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(path, run(dense, images, None)[0].numpy(), allow_pickle=False)
        return torch.from_numpy(read_array(path, (len(images), dense.spec.head.classes)))

    def _path(self, case: Case, fraction: float, what: str) -> Path:
        return self.folder / f"{case.name}-{fraction:g}-{what}"

    def _keep(self, case: Case, fraction: float, what: str, program: Program) -> None:
        save_program(program, self._path(case, fraction, what), force=True)


@click.command(epilog="Example: python benchmarks/compression_curve.py --model vit_tiny -o reports/reference")
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(MODELS)), default=tuple(MODELS))
@click.option("--images", default=1000, show_default=True, help="Labelled images to evaluate on.")
@click.option("--calibration", default=300, show_default=True, help="Unlabelled calibration images.")
@click.option("--seeds", default=1, show_default=True, help="Random draws per image and gate level.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Keep the compressed Programs here.")
@click.option("--minutes", type=float, help="Start no row after this long; go on later with --resume and --work.")
@click.option("--resume", is_flag=True, help="Keep the rows that compression.json holds already.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(
    models: tuple[str, ...],
    images: int,
    calibration: int,
    seeds: int,
    work: Path | None,
    minutes: float | None,
    resume: bool,
    out: Path,
) -> None:
    """Measure the accuracy / MACs curve of pruning and gating."""
    if "EDGEVIT_DATA" not in os.environ:
        raise click.ClickException("set EDGEVIT_DATA to the folder named in this file's first lines")
    out.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/compression_curve.py {' '.join(f'--model {m}' for m in models)} --seeds {seeds}"
    settings: dict[str, object] = {"command": command, "images": images, "calibration": calibration, "seeds": seeds}
    end = time.monotonic() + 60 * minutes if minutes is not None else None
    book = Book(out / "compression.json", settings, resume, end)
    with tempfile.TemporaryDirectory() as temporary:
        made = Made(work or Path(temporary))
        try:
            cases = [
                build_case(name, Path(os.environ["EDGEVIT_DATA"]), images, calibration, book, made) for name in models
            ]
            for case in cases:
                prune_rows(case, book, made, compensated=False)
            for case in cases:
                gate_rows(case, book, made)
            for case in cases:
                random_rows(case, book, made, seeds)
            for case in cases:
                prune_rows(case, book, made, compensated=True)
        except OutOfTime:
            click.echo("out of time; run again with --resume and the same --work")
    if not book.rows:
        raise click.ClickException("no row was measured: --minutes is too short")
    write_atomic(out / "compression.md", table(book))
    plot(book, out / "compression.png")


if __name__ == "__main__":
    main()
