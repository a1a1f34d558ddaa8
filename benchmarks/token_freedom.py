"""How far numbers of merged tokens should be free to follow the image: drift at equal mean cost, on unseen images.

    EDGEVIT_DATA=DIR python -m benchmarks.token_freedom -o reports/reference

One fixed plan, and variants of it with thresholds in which an image merges at most so many times the fixed number of
pairs at a point. Thresholds are set on some calibration images so that all cost the same on average, and judged on
others: top-1 of a few hundred images could not tell them apart, drift paired over the images can.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.compression_curve import MODELS
from edgevit.compress.tokens.drift import drifts, logits
from edgevit.compress.tokens.guard import guards
from edgevit.compress.tokens.per_image import follow_images
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import MergeSpec, ProgramSpec, shift_name
from edgevit.program.tokens import merge_branches, with_merges, write_plan
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

PLAN = {3: 38, 5: 38, 7: 38, 9: 38}  # pairs after the attention of blocks, from 1: 0.6 of the MACs of a ViT-Ti
FREE = (1.1, 1.3, 1.6, 2.0, np.inf)
FITTED, JUDGED, BATCH = 200, 400, 40


@dataclass(frozen=True, kw_only=True)
class Row:
    """A plan on the judged images. `most`: times the fixed number of pairs that an image merges at a point at most.

    `macs` are mean, 10th and 90th percentile; `gain` is how much less it drifts than the fixed plan, with its error.
    """

    model: str
    most: str
    macs: tuple[float, float, float]
    drift: float
    gain: float | None
    gain_error: float | None
    agreement: float


def fixed(dense: Program, work: list[Tensor]) -> Program:
    """Return the model with the fixed plan, guards fitted on batches."""
    names, rows = merge_branches(dense.spec), guards(dense, work)
    merges = [MergeSpec(after=names[block - 1], count=count, shift=True) for block, count in PLAN.items()]
    arrays = {shift_name(point): rows[point.after].numpy() for point in merges}
    return dense.with_weights(arrays, with_merges(dense.spec, merges))


@torch.no_grad()
def judge(
    program: Program, spec: ProgramSpec, work: list[Tensor], expected: Tensor
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return every image's drift and whether its class stays, `[n]`, and its share of the dense model's MACs."""
    model, whole = Vit(program.with_weights({}, spec)).eval(), total_macs(with_merges(spec, ()))
    walks = [model.walk(model.stem(batch), trim=True) for batch in work]
    got = torch.cat([model.head(walk.x, None, walk.sizes) for walk in walks])
    macs = [total_macs(spec, left=row) / whole for walk in walks for row in walk.tokens.numpy()]
    return drifts(spec, expected, got), expected.argmax(1) == got.argmax(1), np.array(macs)


def measure(name: str, dense: Program, images: np.ndarray) -> list[Row]:
    """Return the fixed plan and its variants, thresholds from the first `FITTED` images, judged on the others."""
    fitted, judged = (batches(dense.spec, part, BATCH) for part in (images[:FITTED], images[FITTED:]))
    program = fixed(dense, fitted)
    expected = torch.cat([logits(Vit(dense).eval(), batch) for batch in judged])
    plain, same, macs = judge(program, program.spec, judged, expected)
    found = [_row(name, "fixed", macs, plain, same, None)]
    for most in FREE:
        spec = follow_images(program, fitted, total_macs(program.spec), most=most)
        assert spec is not None
        drifted, same, macs = judge(program, spec, judged, expected)
        found.append(_row(name, "half of the tokens" if np.isinf(most) else f"{most:g}", macs, drifted, same, plain))
        click.echo(f"{found[-1]} {write_plan(spec)}", err=True)
    return found


def _row(name: str, most: str, macs: np.ndarray, drifted: Tensor, same: Tensor, plain: Tensor | None) -> Row:
    gain = None if plain is None else plain - drifted
    return Row(
        model=name,
        most=most,
        macs=(float(macs.mean()), float(np.quantile(macs, 0.1)), float(np.quantile(macs, 0.9))),
        drift=float(drifted.mean()),
        gain=None if gain is None else float(gain.mean()),
        gain_error=None if gain is None else float(gain.std()) / len(gain) ** 0.5,
        agreement=float(same.float().mean()),
    )


def table(rows: list[Row]) -> str:
    """Return token-freedom.md."""
    plan = ",".join(f"{block}:{count}" for block, count in PLAN.items())
    lines = [
        "# How far numbers of merged tokens should follow the image",
        "",
        "`python -m benchmarks.token_freedom`",
        "",
        f"The plan {plan} merges as many pairs in every image. Its variants merge those above thresholds, which "
        f"{FITTED} images set so that the mean cost is the same; at a point an image merges at most so many times the "
        f"fixed number. Drift (mean KL divergence from the dense model) and equal classes on {JUDGED} other images, "
        "float32, no training; gain: how much less it drifts than the fixed plan, with its standard error, paired over "
        "images. MACs: mean, and in brackets the 10th and 90th percentile. `--macs` leaves numbers free up to half of "
        "the tokens that are left.",
        "",
        "| model | at most | MACs | drift | gain | agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        gain = "" if r.gain is None else f"{r.gain:.4f} ± {r.gain_error:.4f}"
        macs = "{:.3f} ({:.3f} to {:.3f})".format(*r.macs)
        lines.append(f"| {r.model} | {r.most} | {macs} | {r.drift:.4f} | {gain} | {r.agreement:.1%} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="EDGEVIT_DATA", required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(data: Path, output: Path) -> None:
    """Measure, write token-freedom.json and token-freedom.md."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, timm_name in MODELS.items():
        dense = from_timm(timm_name, weights=data / f"{timm_name}.safetensors")
        images = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=FITTED + JUDGED).images
        rows += measure(name, dense, images)
    write_atomic(output / "token-freedom.json", dumps({"rows": [asdict(row) for row in rows]}))
    write_atomic(output / "token-freedom.md", table(rows))


if __name__ == "__main__":
    main()
