"""What merging tokens loses and saves, without training: accuracy against MACs, and int8 time at 0.7 of them.

    EDGEVIT_DATA=DIR python benchmarks/tokens.py --model deit_tiny --model vit_tiny -o reports/reference

EDGEVIT_DATA holds `<timm name>.safetensors` of both models, imagenet-sample-1000.tar (calibration, labels unused) and
imagenet-val-1000.tar (evaluation). Programs are kept in --work and rows in tokens.json, each as soon as it is there; a
second run goes on from them. Times are process CPU times of one thread, dense and merged int8 in turns.
"""

from __future__ import annotations

import json
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
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import total_macs
from edgevit.program.program import Program, load_program, save_program
from edgevit.program.tokens import write_plan
from edgevit.schema.target import load_target
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

SHARES = (1.0, 0.7, 0.6, 0.5, 0.8)
TIMED = 0.7
TARGETS = ("x86-64-onnxruntime", "x86-64-openvino")
CALIBRATION, ROUNDS, TIMED_IMAGES = 300, 60, 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Program as one runtime computes it (`torch`: float). `time` is CPU time over the dense int8 build's."""

    model: str
    runtime: str
    share: float
    macs: float
    plan: str
    pruned: bool
    top1: float
    agreement: float
    images: int
    time: float | None = None
    time_low: float | None = None
    time_high: float | None = None


@torch.no_grad()
def float_classes(program: Program, images: np.ndarray) -> np.ndarray:
    model = Vit(program).eval()
    return np.concatenate([model(b, trim=True).argmax(1).numpy() for b in batches(program.spec, images, 50)])


def made(name: str, dense: Program, share: float, calibration: np.ndarray, work: Path) -> Program:
    """The Program with merged tokens, searched for once and kept."""
    if share == 1.0:
        return dense
    folder = work / f"{name}-{share:g}"
    if not folder.exists():
        found = pipeline.compress(
            dense, calibration, Budgets(merged=share), say=lambda line: click.echo(line, err=True)
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
) -> Row:
    dense, program = programs
    assert held.labels is not None
    return Row(
        model=name,
        runtime=runtime,
        share=share,
        macs=total_macs(program.spec) / total_macs(dense.spec),
        plan=write_plan(program.spec),
        pruned=any(b.units < b.units_total for b in program.spec.branches),
        top1=float((said == held.labels).mean()),
        agreement=float((said == expected).mean()),
        images=len(said),
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
        "A plan 4:60,8:60 merges 60 pairs after the attention of blocks 4 and 8, counted from 1.",
    ]
    for model in dict.fromkeys(r.model for r in rows):
        lines += ["", f"## {model}", "", "| computed by | MACs | plan | top-1 | agreement | time |"]
        lines += ["| --- | ---: | --- | ---: | ---: | ---: |"]
        for r in sorted(
            (r for r in rows if r.model == model), key=lambda r: (r.runtime != "torch", r.runtime, -r.macs)
        ):
            time = "" if r.time is None else f"{r.time:.3f} ({r.time_low:.3f} to {r.time_high:.3f})"
            how = "float" if r.runtime == "torch" else f"int8, {r.runtime}"
            plan = f"{r.plan or 'dense'}{', pruned too' if r.pruned else ''}"
            lines.append(f"| {how} | {r.macs:.3f} | {plan} | {r.top1:.1%} | {r.agreement:.1%} | {time} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="EDGEVIT_DATA", required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/tokens"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(models: tuple[str, ...], data: Path, work: Path, output: Path) -> None:
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
        expected = float_classes(dense, held.images)
        for share in SHARES:
            if not any((r.model, r.runtime, r.share) == (name, "torch", share) for r in rows):
                program = made(name, dense, share, calibration, work)
                said = float_classes(program, held.images)
                keep(row(name, "torch", share, (dense, program), said, held, expected))
            if share != TIMED:
                continue
            for target in TARGETS:
                if not any((r.model, r.runtime) == (name, target) for r in rows):
                    program = made(name, dense, TIMED, calibration, work)
                    keep(*timed(name, dense, program, calibration, held, expected, target, work))


if __name__ == "__main__":
    main()
