"""What fitting a model that merges tokens to the dense stream again brings, without labels or training.

    EDGEVIT_DATA=DIR python -m benchmarks.merge_repair --work DIR -o reports/reference

The plans are those that `edgevit build --macs` searches, with fixed numbers of pairs; the fit is
`edgevit.compress.tokens.repair`, kept here whether it helps or not. EDGEVIT_DATA is that of benchmarks/tokens.py.
Programs are kept in --work and rows in merge-repair.json, each as soon as it is there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.compression_curve import MODELS
from benchmarks.kept import read_program, read_rows
from benchmarks.tokens import CALIBRATION, int8
from edgevit.compress.prune.refit import refit
from edgevit.compress.tokens.drift import drift, logits
from edgevit.compress.tokens.search import search
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.program.macs import total_macs
from edgevit.program.program import Program, save_program
from edgevit.program.tokens import write_plan
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

TARGET = "x86-64-onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Program on images of ImageNet's validation set; `runtime` is torch (float) or the target of an int8 build."""

    model: str
    macs: float
    plan: str
    repaired: bool
    runtime: str
    drift: float | None
    top1: float
    agreement: float
    dense_top1: float
    images: int


def merged(name: str, dense: Program, share: float, images: np.ndarray, work: Path) -> dict[bool, Program]:
    """The Program before and after its repair, each made once."""
    found: dict[bool, Program] = {}
    for repaired in (False, True):
        folder = work / f"{name}-{share:g}{'-repaired' if repaired else ''}"
        if not folder.exists():
            if repaired:
                program = refit(found[False], dense, images)
            else:
                plan = search(dense, images, int(share * total_macs(dense.spec)), reference=dense, say=click.echo)
                program = dense.with_weights(plan.shifts, plan.spec)
            save_program(program, folder)
        found[repaired] = read_program(folder)
    return found


def table(rows: list[Row]) -> str:
    """The results as a markdown document."""
    lines = [
        "# Fitting what merges tokens to the dense stream again",
        "",
        "`python -m benchmarks.merge_repair`",
        "",
        f"Output linears behind the first merge, fitted in closed form on {CALIBRATION} unlabelled images, a fifth of "
        "which only chooses the ridge; no training. Drift (nats from the dense model's classes), agreement with it in "
        "float, and top-1 on other images, the first of ImageNet's validation set.",
        "",
        "| model | computed by | MACs | plan | | drift | agreement | top-1 | against dense float |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        nats = "" if r.drift is None else f"{r.drift:.3f}"
        step = "repaired" if r.repaired else "as merged"
        lines.append(
            f"| {r.model} | {'float' if r.runtime == 'torch' else f'int8, {r.runtime}'} | {r.macs:.3f} | {r.plan} "
            f"| {step} | {nats} | {r.agreement:.1%} | {r.top1:.1%} (n = {r.images}) "
            f"| {100 * (r.top1 - r.dense_top1):+.1f} |"
        )
    return "\n".join(lines) + "\n"


@torch.no_grad()
def said(program: Program, images: np.ndarray) -> torch.Tensor:
    model = Vit(program).eval()
    return torch.cat([logits(model, batch) for batch in batches(program.spec, images, 50)])


@click.command(epilog="Example: python -m benchmarks.merge_repair --work out/repair -o reports/reference")
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(MODELS)), default=("deit_tiny",))
@click.option("--share", "shares", multiple=True, type=float, default=(0.7, 0.6, 0.5))
@click.option("--data", required=True, envvar="EDGEVIT_DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("-o", "--output", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(models: tuple[str, ...], shares: tuple[float, ...], data: Path, work: Path, output: Path) -> None:
    """Hold merged models before and after their repair against the dense one."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "merge-repair.json"
    rows = read_rows(file, Row, "delete it, and all rows are measured anew")
    for name in models:
        dense = from_timm(MODELS[name], weights=data / f"{MODELS[name]}.safetensors")
        known = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=CALIBRATION).images
        held = load_images(data / "imagenet-val-1000.tar", dense.spec.image, labelled=True)
        expected = said(dense, held.images)
        classes, labels = expected.argmax(1).numpy(), held.labels
        assert labels is not None
        for share in shares:
            programs = merged(name, dense, share, known, work)
            for repaired, runtime in ((False, "torch"), (True, "torch"), (True, TARGET)):
                program, nats = programs[repaired], None
                plan = write_plan(program.spec)
                if any((r.model, r.plan, r.repaired, r.runtime) == (name, plan, repaired, runtime) for r in rows):
                    continue
                if runtime == "torch":
                    got = said(program, held.images)
                    answers, nats = got.argmax(1).numpy(), drift(dense.spec, expected, got)
                else:
                    runner = int8(program, runtime, known, work / f"{name}-{share:g}-{runtime}")
                    answers = np.array([int(runner.run(image[None])[0].argmax()) for image in held.images])
                rows.append(
                    Row(
                        model=name,
                        macs=total_macs(program.spec) / total_macs(dense.spec),
                        plan=plan,
                        repaired=repaired,
                        runtime=runtime,
                        drift=nats,
                        top1=float((answers == labels).mean()),
                        agreement=float((answers == classes).mean()),
                        dense_top1=float((classes == labels).mean()),
                        images=len(labels),
                    )
                )
                write_atomic(file, dumps({"rows": [asdict(r) for r in rows]}))
                write_atomic(output / "merge-repair.md", table(rows))


if __name__ == "__main__":
    main()
