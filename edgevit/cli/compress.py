"""`edgevit compress`: train pruning, gates and merging of tokens together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevit.cli.preprocessing import preprocessing_options, take_preprocessing
from edgevit.cli.ranges import SEED, THREADS, Number
from edgevit.cli.sizes import IMAGE_SIZE

if TYPE_CHECKING:
    from edgevit.api.trained import Trained

EPILOG = """\b
Example: fine-tune on your classes, then halve the expected MACs (or with tokens merged too), then build.
  edgevit compress vit_tiny_patch16_224 --weights vit.safetensors --data photos/ --new-head -o out/dense
  edgevit compress out/dense/program --data photos/ --macs 0.5 -o out/small
  edgevit compress out/dense/program --data photos/ --macs 0.5 --tokens search -o out/merged
  edgevit build out/small/program --target x86-64-onnxruntime
Several processes: torchrun --nproc-per-node 2 -m edgevit compress ...
"""
SHARE = Number(0, 1, min_open=True)
DATA = "Folder, tar, zip, TOML, .npz or torchvision:NAME:FOLDER"


@click.command(epilog=EPILOG, short_help="Train a model to cost less: pruned, gated, with tokens merged.")
@click.argument("model")
@click.option("--data", required=True, help=f"Training images. {DATA}.")
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint of a named model: file or hub folder.")
@click.option("--macs", type=SHARE, default=1.0, show_default=True, help="Share of the MACs left, expected per image.")
@click.option("--static", type=SHARE, help="Share left with every gate open (default: from --macs, by the recipe).")
@click.option("--tokens", help="Merge tokens in training and after: a plan such as 4:60,8:60, or search.")
@click.option("--memory", help="Memory bound instead of --static, such as 3.0MiB; pruning pays.")
@click.option("--target", default="x86-64-onnxruntime", show_default=True, help="Whose memory bound is meant.")
@click.option("--eval", "evaluation", help="Labelled images for top-1 (default: the data's val or test split).")
@click.option("--recipe", type=click.Path(path_type=Path), help="TOML file with numbers of TrainRecipe.")
@click.option("--image-size", type=IMAGE_SIZE, help="Input in pixels: H,W or one number (default: the weights').")
@click.option("--classes", help="Keep only these of the model's classes: numbers or names with commas, or a text file.")
@click.option("--new-head", is_flag=True, help="Start a new classifier for the data's classes.")
@click.option("--unlabelled", is_flag=True, help="Use no labels: follow the given model.")
@click.option("--groups", help="Samples that share a gate decision: batch, 'random 1 64', recursive, sample, ...")
@click.option("--seed", type=SEED, help="Seed of everything random.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--threads", type=THREADS, help="Threads on the processor.")
@click.option("--teacher-cache", type=click.Path(path_type=Path), help="Folder that keeps the given model's outputs.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder (default: out/MODEL-compressed).")
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--ema/--no-ema", default=None, help="Take averaged weights of a checkpoint, or the plain ones.")
@preprocessing_options
def command(as_json: bool, **options: Any) -> None:
    """Train MODEL (a Program or hub folder, or a name) to cost less: smaller, and less for easy images."""
    from edgevit.util import strict_json
    from edgevit.util.optional import require_torch
    from edgevit.util.progress import say

    require_torch("compressing")
    from edgevit.api.training import CompressJob, run_compress

    job = CompressJob(preprocessing=take_preprocessing(options), **options)
    result = run_compress(job, say=say)
    if result is not None:
        click.echo(strict_json.dumps(result) if as_json else _summary(result), nl=not as_json)


def _summary(r: Trained) -> str:
    d, c = r.dense, r.compressed
    rows = [
        ("top-1", _percent(d.top1), f"{_percent(c.top1)} at batch 1, {r.images} images of {r.evaluated_on}"),
        ("agreement", "", _percent(r.agreement)),
        ("MACs", _million(d.macs), f"{_million(c.macs)} expected ({c.macs / d.macs:.1%})"),
        ("", _million(d.all_open_macs), f"{_million(c.all_open_macs)} all open ({c.all_open_macs / d.macs:.1%})"),
        ("weights", _mb(d.weights_bytes), f"{_mb(c.weights_bytes)} as float32"),
        ("memory", _mb(d.bound_bytes), f"{_mb(c.bound_bytes)} bound of an int8 build for {r.target}"),
        ("heads", str(d.heads), str(c.heads)),
        ("neurons", str(d.neurons), str(c.neurons)),
        ("branches", str(d.branches), str(c.branches)),
    ]
    lines = [f"  {name:<10}{before:>10} -> {after}" for name, before, after in rows]
    follows = [] if r.adaptivity is None else [f"  {part}" for part in r.adaptivity.said.split("; ")]
    following = f"Next: edgevit build {r.program} --target {r.target}"
    return "\n".join([*lines, *follows, f"Program: {r.program}", following])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _million(macs: float) -> str:
    return f"{macs / 1e6:.1f} M"


def _mb(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f} MB"
