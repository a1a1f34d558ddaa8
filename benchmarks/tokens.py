"""What merging tokens loses and saves, without training: accuracy against MACs, and int8 time at 0.7 of them.

Fixed numbers of pairs stand beside numbers that follow the image at the same mean cost.

    EDGEVIT_DATA=DIR python benchmarks/tokens.py --model deit_tiny --model vit_tiny -o reports/reference

EDGEVIT_DATA holds `<timm name>.safetensors` of both models, imagenet-sample-1000.tar (calibration, labels unused) and
imagenet-val-1000.tar (evaluation). Programs are kept in --work and rows in tokens.json, each as soon as it is there; a
second run goes on from them. Times are process CPU times of one thread, dense and merged int8 in turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.compression_curve import MODELS
from benchmarks.timing import interleave, ratio
from edgevit import pipeline
from edgevit.backends import Runner, onnx_backend
from edgevit.compress.budgets import Budgets
from edgevit.compress.tokens.per_image import follow_images
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program, load_program, save_program
from edgevit.program.tokens import write_plan
from edgevit.schema.target import load_target
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

SHARES = (1.0, 0.7, 0.6, 0.8, 0.5)
TIMED = 0.7
TARGETS = ("x86-64-onnxruntime", "x86-64-openvino")
PRECISE = re.compile(r"@(-?[0-9.e-]+)")
CALIBRATION, ROUNDS, TIMED_IMAGES = 300, 60, 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Program as one runtime computes it (`torch`: float). `time` is CPU time over the dense int8 build's.

    `macs` is the mean of the images; `macs_low` and `macs_high` are its 10th and 90th percentile over them.
    """

    model: str
    runtime: str
    share: float
    macs: float
    plan: str
    pruned: bool
    top1: float
    agreement: float
    images: int
    follows: bool = False
    macs_low: float | None = None
    macs_high: float | None = None
    time: float | None = None
    time_low: float | None = None
    time_high: float | None = None


@torch.no_grad()
def answers(program: Program, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes in float, and MACs of every image."""
    model = Vit(program).eval()
    found = [model.answer(batch) for batch in batches(program.spec, images, 50)]
    macs = [run_macs(program.spec, g, t) for a in found for g, t in zip(a.gates.numpy(), a.tokens.numpy(), strict=True)]
    return np.concatenate([a.logits.argmax(1).numpy() for a in found]), np.array(macs)


def made(name: str, dense: Program, share: float, calibration: np.ndarray, work: Path, follows: bool) -> Program:
    """The Program with merged tokens, searched for once and kept."""
    if share == 1.0:
        return dense
    folder = work / f"{name}-{share:g}{'-image' if follows else ''}"
    if not folder.exists():
        if follows:  # what the search does too, after the same fixed plan
            fixed = made(name, dense, share, calibration, work, follows=False)
            spec = follow_images(fixed, batches(fixed.spec, calibration), share * total_macs(dense.spec))
            assert spec is not None
            found = fixed.with_weights({}, spec)
        else:
            found = pipeline.compress(
                dense,
                calibration,
                Budgets(merged=share, per_image=False),
                say=lambda line: click.echo(f"{name} {share}: {line}", err=True),
            )
        save_program(found, folder)
    return load_program(folder)


def int8(program: Program, target_name: str, calibration: np.ndarray, folder: Path) -> Runner:
    target, runtime = load_target(target_name), onnx_backend(load_target(target_name).backend)
    lowered, plan = pipeline.quantize(program, target, calibration)
    folder.mkdir(parents=True, exist_ok=True)
    runtime.compile(assemble(lowered, plan), folder)
    return runtime.load(folder, threads=1, precision=target.inference_precision, weight_bits=target.weight_bits)


def row(
    name: str,
    runtime: str,
    share: float,
    programs: tuple[Program, Program],
    said: np.ndarray,
    held: ImageSet,
    expected: np.ndarray,
    time: tuple[float, float, float] | None = None,
    macs: np.ndarray | None = None,
) -> Row:
    dense, program = programs
    assert held.labels is not None
    whole = total_macs(dense.spec)
    spent = np.array([total_macs(program.spec)] if macs is None else macs) / whole
    follows = program.spec.adaptive
    return Row(
        model=name,
        runtime=runtime,
        share=share,
        macs=float(spent.mean()),
        plan=write_plan(program.spec),
        pruned=any(b.units < b.units_total for b in program.spec.branches),
        top1=float((said == held.labels).mean()),
        agreement=float((said == expected).mean()),
        images=len(said),
        follows=follows,
        macs_low=float(np.quantile(spent, 0.1)) if follows else None,
        macs_high=float(np.quantile(spent, 0.9)) if follows else None,
        time=time[0] if time else None,
        time_low=time[1] if time else None,
        time_high=time[2] if time else None,
    )


def timed(
    name: str,
    dense: Program,
    program: Program,
    calibration: np.ndarray,
    held: ImageSet,
    expected: np.ndarray,
    target: str,
    work: Path,
) -> list[Row]:
    """Int8 of the dense and of the merged Program on one runtime: accuracy of both, and their times in turns."""
    runners = {"dense": dense, "merged": program}
    loaded = {k: int8(p, target, calibration, work / f"{name}-{target}-{k}") for k, p in runners.items()}
    images = held.images
    said = {k: np.array([int(r.run(image[None])[0].argmax()) for image in images]) for k, r in loaded.items()}

    def once(runner: Runner) -> Callable[[int], object]:
        return lambda index: runner.run(images[index][None])

    times = interleave({key: once(runner) for key, runner in loaded.items()}, TIMED_IMAGES, ROUNDS)
    found = ratio(times["merged"], times["dense"])
    return [
        row(name, target, 1.0, (dense, dense), said["dense"], held, expected, (1.0, 1.0, 1.0)),
        row(
            name, target, TIMED, (dense, program), said["merged"], held, expected, (found.value, found.low, found.high)
        ),
    ]


def rounded(threshold: re.Match[str]) -> str:
    return f"@{float(threshold[1]):.3f}"


def table(rows: list[Row]) -> str:
    lines = [
        "# Merging tokens: accuracy against MACs and time, without training",
        "",
        "`python benchmarks/tokens.py --model deit_tiny --model vit_tiny`",
        "",
        f"Top-1 on the first {max(r.images for r in rows)} images of ImageNet's validation set (standard error about "
        f"1.4 points; differences on the same images are smaller); {CALIBRATION} unlabelled images of another set for "
        "the search and for int8 ranges. Agreement: the same class as the dense float model. Time: CPU time of one "
        "thread over the dense int8 build's on the same runtime, median of rounds in turns, with its 95 % interval. "
        "A plan 4:60,8:60 merges 60 pairs after the attention of blocks 4 and 8, counted from 1; 4:0-98@0.8 those "
        "whose likeness is above 0.8, up to 98, so that the number follows the image: MACs are then the mean over the "
        "images and, in brackets, the 10th and 90th percentile.",
    ]
    for model in dict.fromkeys(r.model for r in rows):
        lines += ["", f"## {model}", "", "| computed by | MACs | plan | top-1 | agreement | time |"]
        lines += ["| --- | ---: | --- | ---: | ---: | ---: |"]
        for r in sorted(
            (r for r in rows if r.model == model), key=lambda r: (r.runtime != "torch", r.runtime, -r.macs)
        ):
            time = "" if r.time is None else f"{r.time:.3f} ({r.time_low:.3f} to {r.time_high:.3f})"
            how = "float" if r.runtime == "torch" else f"int8, {r.runtime}"
            plan = f"{PRECISE.sub(rounded, r.plan) or 'dense'}{', pruned too' if r.pruned else ''}"
            spread = "" if r.macs_low is None else f" ({r.macs_low:.3f} to {r.macs_high:.3f})"
            lines.append(f"| {how} | {r.macs:.3f}{spread} | {plan} | {r.top1:.1%} | {r.agreement:.1%} | {time} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="EDGEVIT_DATA", required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/tokens"), show_default=True)
@click.option("--timing/--no-timing", default=True, help="Build and time int8 too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(models: tuple[str, ...], data: Path, work: Path, timing: bool, output: Path) -> None:
    """Measure, write tokens.json and tokens.md."""
    file = output / "tokens.json"
    rows = [Row(**r) for r in json.loads(file.read_text())["rows"]] if file.exists() else []

    def keep(*found: Row) -> None:
        rows.extend(found)
        write_atomic(file, dumps({"rows": [asdict(r) for r in rows]}))
        write_atomic(output / "tokens.md", table(rows))

    for name in models:
        timm_name = MODELS[name]
        dense = from_timm(timm_name, weights=data / f"{timm_name}.safetensors")
        calibration = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=CALIBRATION).images
        held = load_images(data / "imagenet-val-1000.tar", dense.spec.image, labelled=True)
        expected = answers(dense, held.images)[0]
        for share in SHARES:
            for follows in (False, True) if share < 1.0 else (False,):
                if not any((r.model, r.runtime, r.share, r.follows) == (name, "torch", share, follows) for r in rows):
                    program = made(name, dense, share, calibration, work, follows)
                    said, macs = answers(program, held.images)
                    keep(row(name, "torch", share, (dense, program), said, held, expected, macs=macs))
            if share != TIMED or not timing:
                continue
            for target in TARGETS:
                if not any((r.model, r.runtime) == (name, target) for r in rows):
                    program = made(name, dense, TIMED, calibration, work, follows=False)
                    keep(*timed(name, dense, program, calibration, held, expected, target, work))


if __name__ == "__main__":
    main()
