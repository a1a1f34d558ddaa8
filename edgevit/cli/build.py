"""`edgevit build`: a model to a verified bundle for one target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevit.cli.budget import budget_options, take_budget
from edgevit.cli.messages import silent
from edgevit.cli.preprocessing import preprocessing_options, take_preprocessing
from edgevit.cli.ranges import SEED, Number
from edgevit.cli.sizes import IMAGE_SIZE
from edgevit.cli.targets import complete_target
from edgevit.cli.terminal import fitted
from edgevit.util import limits
from edgevit.util.progress import overall

if TYPE_CHECKING:
    from edgevit.api.build import Built, Prediction
    from edgevit.schema.manifest import AccuracyRow

EPILOG = """\b
Examples:
  edgevit build --target host -o out/demo
  edgevit build deit_tiny_patch16_224 --weights deit.safetensors --target x86-64-openvino \\
      --calibration photos/ --eval val.tar --macs 0.8 -o out/deit
  edgevit build vit_tiny_patch16_224 --weights vit.safetensors --classes 207,281 --target x86-64-openvino
  edgevit build deit.safetensors --target x86-64-onnxruntime --tokens 4:60,8:60     (a third of the MACs less)
  edgevit build out/program --target x86-64-avx2-onnxruntime --dry-run
  edgevit build hub/vit-base --target x86-64-onnxruntime     (a folder with config.json and weights)
"""
# How the messages begin that begin a stage, and its typical share of the time.
STAGES = {
    "compressing": 0.35,
    "looking for tokens": 0.35,
    "Quantizing": 0.45,
    "Lowering": 0.05,
    "Compiling": 0.1,
    "Verifying int8 coverage": 0.01,
    "Verifying parity": 0.12,
    "Verifying that skipped": 0.1,
    "Bounding memory": 0.12,
    "Verifying accuracy": 0.08,
    "Measuring operating points": 0.05,
    "Writing the bundle": 0.03,
}


@click.command(epilog=EPILOG, short_help="Compile a model into a verified bundle for one device.")
@click.argument("model", required=False)
@click.option(
    "--target",
    "target_name",
    required=True,
    shell_complete=complete_target,
    help="A name from `edgevit targets`, a TOML file, or host: this machine.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint of a named model: file or hub folder.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Unlabelled images: folder, tar, zip or TOML.")
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Labelled images for top-1.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names: text file, one per line, or imagenet-1k.")
@click.option("--classes", help="Keep only these of the model's classes: numbers or names with commas, or a text file.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most this many calibration images.")
@budget_options
@click.option(
    "--tokens",
    metavar="PLAN",
    help="Merge tokens by hand: 4:60,8:60 is 60 pairs after blocks 4 and 8; 4:0-98@0.8 is, after block 4, as many of "
    "at most 98 pairs as the image has with a cosine above 0.8.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of gate training.")
@click.option(
    "--tune",
    "tune_s",
    type=Number(0, limits.SECONDS.value),
    default=0.0,
    metavar="SECONDS",
    help="CPU time to search for TVM's tiles on this machine; what is found is kept.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle folder (default: out/NAME-TARGET).")
@click.option(
    "--name",
    default="",
    metavar="NAME",
    help="What the bundle and its C library are called (default: the model's name); names keep models of one "
    "architecture apart.",
)
@click.option("--save-program", type=click.Path(path_type=Path), help="Also save the compressed Program here (fp16).")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--dry-run", is_flag=True, help="Predict size, MACs, memory bound and coverage; build nothing.")
@click.option("--original", help="The model before compression, as a Program or a name, to compare MODEL with.")
@click.option("--original-weights", type=click.Path(path_type=Path), help="Checkpoint of --original.")
@click.option(
    "--max-drop",
    type=Number(min=0, max=100),
    metavar="POINTS",
    help="Fail if more is lost against the original in float: top-1, or without labels agreement.",
)
@click.option(
    "--budget",
    metavar="LIMITS",
    help="What the device allows, as ram=8,flash=6,latency=30,drop=1: MB, MB, ms, points; the bundle says what is met.",
)
@click.option(
    "--formats", help="Files of the model that ship, named as in targets, with commas (default: the target's)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--replace-program", is_flag=True, help="Let --save-program replace an existing Program.")
@click.option("--ema/--no-ema", default=None, help="Take averaged weights of a checkpoint, or the plain ones.")
@click.option("--image-size", type=IMAGE_SIZE, help="Input in pixels: H,W or one number (default: the weights').")
@click.option("--license", help="Licence of the weights, as the bundle is to state it.")
@click.option("--credit", help="Who made the weights, as the bundle is to state it.")
@preprocessing_options
def command(model: str | None, target_name: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Compile MODEL (a Program or hub folder, or a name; default: vit_tiny_gated, which ships) for a target."""
    from edgevit.api.build import Job, predict_build, run_build
    from edgevit.util import strict_json

    formats = tuple(name.strip() for name in (options.pop("formats") or "").split(",") if name.strip())
    preprocessing, asked = take_preprocessing(options), take_budget(options)
    job = Job(
        model=model,
        target=target_name,
        prune=asked.prune,
        gate=asked.gate,
        merge=asked.merge,
        preprocessing=preprocessing,
        formats=formats,
        **options,
    )
    if job.tokens is not None and job.merge < 1.0:
        raise click.UsageError("--macs chooses where tokens are merged, and --tokens says it; give one of them.")
    with silent(as_json):
        if dry_run:
            prediction = predict_build(job)
            click.echo(strict_json.dumps(prediction) if as_json else _prediction(prediction), nl=not as_json)
            return
        with overall("Building", STAGES):
            built = run_build(job)
    if as_json:
        answer = {
            "bundle": str(built.folder),
            "archive": str(built.archive),
            "manifest": built.manifest,
            "point_times": built.times,
        }
        click.echo(strict_json.dumps(answer), nl=False)
        return
    _show(built)


def _prediction(p: Prediction) -> str:
    bound = f"{p.bound_bytes / 1e6:.1f} MB" if p.bound_bytes is not None else "not predicted for this runtime"
    expected = f"{p.expected_macs / 1e6:.0f} M expected" if p.expected_macs is not None else f"less when {p.less_when}"
    return (
        f"{p.model} for {p.target}, predicted:\n"
        f"  model       {p.model_bytes / 1e6:.2f} MB of {p.holds} (float weights: {p.float_bytes / 1e6:.2f} MB)\n"
        f"  MACs        {p.all_open_macs / 1e6:.0f} M all open, {expected} "
        f"(current: {p.dense_macs / 1e6:.0f} M)\n"
        f"  memory      {bound}\n"
        f"  int8        {p.int8_linears} of {p.linears} Linears"
    )


def _told(row: AccuracyRow) -> str:
    """Say of which model a row is, and with which it agrees."""
    if row.metric != "agreement":
        return row.model
    return f"{row.model} with the {'original' if row.against == 'original' else 'compressed float model'}"


def _points(built: Built) -> Iterator[str]:
    """Yield a line per named operating point: what it costs, takes here, and answers; then which are one."""
    from edgevit.api.build import alike, effort_points, effort_text

    times = {time.effort: time for time in built.times}
    for point in built.manifest.points:
        if point.name is None:
            continue
        model = "original" if point.against == "original" else "float model"
        agrees = "" if point.agreement is None else f", {point.agreement.value:.1%} as the {model}"
        here = times.get(point.effort)
        takes = f", {here.mean_ms:.2f} ms (at most {here.most_ms:.2f})" if here else ""
        yield f"{point.name} (effort {effort_text(point.effort)}): {point.macs / 1e6:.0f} M MACs{takes}{agrees}"
    if times:
        yield "ms: CPU time on this machine, every image run once; edgevit profile measures a device"
    if same := alike(effort_points(built.manifest)):
        yield same


def _show(built: Built) -> None:
    from edgevit.api.build import BUDGETS, check_budgets

    manifest = built.manifest
    for claim in manifest.claims:
        state = {True: "passed", False: "FAILED", None: "not verified"}[claim.held]
        click.echo(fitted(f"  {claim.name:<9} {state}: {claim.summary}", 12))
    for row in manifest.accuracy:
        interval = f"{row.low:.1%} to {row.high:.1%}, n = {row.images}"
        click.echo(f"  {row.metric:<9} {_told(row)}: {row.value:.1%} ({interval})")
    for line in _points(built):
        click.echo(fitted(f"  point     {line}", 12))
    sizes, macs = manifest.sizes, manifest.macs
    click.echo(f"  size      {sizes.model_bytes / 1e6:.2f} MB (dense float {sizes.float_bytes / 1e6:.2f} MB)")
    click.echo(f"  MACs      {macs.expected / 1e6:.0f} M expected, {macs.all_open / 1e6:.0f} M all open")
    for check in check_budgets(manifest):
        state = {True: "met", False: "NOT MET", None: "not known"}[check.held]
        needed = "" if check.value is None else f"{check.value:.3g} of "
        click.echo(f"  budget    {state}: {needed}{check.limit:g}, {BUDGETS[check.key]}; {check.what}")
    click.echo(f"Bundle: {built.folder} and {built.archive}")
    click.echo(f"Report: {built.folder / 'report.html'}")
