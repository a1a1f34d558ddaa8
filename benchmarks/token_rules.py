"""Compare rules that say which tokens are merged or dropped, at equal numbers of tokens: drift from the dense model.

    EDGEVIT_DATA=DIR python -m benchmarks.token_rules -o reports/reference

Calibration images only, no labels; the plan merges 70 pairs after block 4 and 50 after block 8 whatever the rule. What
is built is `guarded` (`edgevit.compress.tokens.guard`) and, for plans by hand, `stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.compression_curve import MODELS
from edgevit.compress.tokens.guard import attention_to_patches, guards
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.program.macs import total_macs
from edgevit.program.spec import BranchSpec, MergeSpec
from edgevit.program.tokens import merge_branches, with_merges
from edgevit.torch_form import attention, ffn
from edgevit.torch_form.stream import batches
from edgevit.torch_form.tokens import pick
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

PLAN = {"b03_mhsa": 70, "b07_mhsa": 50}
IMAGES, FITTED, BATCH = 300, 128, 50
Score = Callable[[Vit, BranchSpec, Tensor, Tensor], Tensor]  # the stream before and after an MHSA -> [B, F, S]


def normed(model: Vit, x: Tensor) -> Tensor:
    return F.layer_norm(x[:, model.spec.stem.prefix :], (model.spec.dim,), eps=model.spec.norm_eps)


def product(rows: Tensor) -> Tensor:
    return rows[:, 0::2] @ rows[:, 1::2].transpose(1, 2)


def stream(model: Vit, branch: BranchSpec, before: Tensor, x: Tensor) -> Tensor:
    return product(normed(model, x))


def keys(model: Vit, branch: BranchSpec, before: Tensor, x: Tensor) -> Tensor:
    """The keys' mean over heads, as ToMe has it."""
    rows, width = model.norm(f"{branch.name}.norm", before)[:, model.spec.stem.prefix :], branch.width
    weight, bias = (model.array(f"{branch.name}.qkv.{part}") for part in ("weight", "bias"))
    found = rows @ weight[:, width : 2 * width] + bias[width : 2 * width]
    return product(F.normalize(found.reshape(*found.shape[:2], branch.units, -1).mean(dim=2), dim=-1))


def distance(model: Vit, branch: BranchSpec, before: Tensor, x: Tensor) -> Tensor:
    """How much the stream's rows differ, lengths included."""
    rows = x[:, model.spec.stem.prefix :]
    return -torch.cdist(rows[:, 0::2], rows[:, 1::2]).square()


def attended(model: Vit, branch: BranchSpec, before: Tensor, x: Tensor) -> Tensor:
    """The distance, times the root of the attention that both get in this block: needs the attention's weights."""
    given = attention_to_patches(model, branch, before).exp()
    return distance(model, branch, before, x) * ((given[:, 0::2, None] + given[:, None, 1::2]) / 2).sqrt()


def guarded(rows: Mapping[str, Tensor]) -> Score:
    """The cosine, less what a linear fit says of how much either token matters later."""
    return lambda model, branch, before, x: product(normed(model, x) - rows[branch.name])


def merge(model: Vit, x: Tensor, sizes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    prefix = model.spec.stem.prefix
    first, second = x[:, prefix::2], x[:, prefix + 1 :: 2]
    ones, twos = sizes[:, prefix::2], sizes[:, prefix + 1 :: 2]
    best, into = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone, left = order[:, :count], order[:, count:].sort(dim=-1).values
    places = torch.arange(second.shape[1])
    taken = (places[None, :, None] == into.gather(1, gone)[:, None]) * pick(ones, gone).transpose(1, 2)
    sums = twos + taken.sum(dim=2, keepdim=True)
    means = (second * twos + taken @ pick(first, gone)) / sums
    rows, held = [x[:, :prefix], pick(first, left), means], [sizes[:, :prefix], pick(ones, left), sums]
    return torch.cat(rows, dim=1), torch.cat(held, dim=1)


def drop(model: Vit, branch: BranchSpec, before: Tensor, x: Tensor, count: int) -> Tensor:
    """EViT: all but the most attended are fused into one token, weighed by their attention."""
    prefix = model.spec.stem.prefix
    given, patches = attention_to_patches(model, branch, before).exp(), x[:, prefix:]
    order = given.argsort(dim=-1, descending=True, stable=True)
    kept = patches.shape[1] - count - 1
    stay, gone = order[:, :kept].sort(dim=-1).values, order[:, kept:]
    weights = given.gather(1, gone)[..., None]
    fused = (pick(patches, gone) * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return torch.cat([x[:, :prefix], pick(patches, stay), fused], dim=1)


@torch.no_grad()
def logits(model: Vit, batch: Tensor, score: Score | None, *, drops: bool = False) -> Tensor:
    x = model.stem(batch)
    sizes = torch.ones(*x.shape[:2], 1)
    for branch in model.spec.branches:
        before = x
        bias = sizes if score is not None and sizes.shape[1] < model.spec.tokens else None
        y = attention.mhsa(model, branch, x, sizes=bias) if branch.kind == "mhsa" else ffn.ffn(model, branch, x)
        x = x + y
        if branch.name in PLAN and drops:
            x = drop(model, branch, before, x, PLAN[branch.name])
        elif branch.name in PLAN and score is not None:
            x, sizes = merge(model, x, sizes, score(model, branch, before, x), PLAN[branch.name])
    return model.head(x)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="EDGEVIT_DATA", required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(data: Path, output: Path) -> None:
    """Measure, write token-rules.json and token-rules.md."""
    torch.set_num_threads(1)
    rows = []
    for name, timm_name in MODELS.items():
        dense = from_timm(timm_name, weights=data / f"{timm_name}.safetensors")
        images = load_images(data / "imagenet-sample-1000.tar", dense.spec.image).images
        fitted, judged = images[::3][:FITTED], images[1::3][:IMAGES]  # none in both
        model, work = Vit(dense).eval(), batches(dense.spec, judged, BATCH)
        expected = torch.cat([logits(model, batch, None) for batch in work]).log_softmax(dim=1)
        rules: dict[str, Score | None] = {
            "stream": stream,
            "keys": keys,
            "distance": distance,
            "attended": attended,
            "guarded": guarded(guards(dense, batches(dense.spec, fitted, BATCH))),
            "evit": None,
        }
        names = merge_branches(dense.spec)
        spec = with_merges(dense.spec, [MergeSpec(after=n, count=PLAN[n]) for n in names if n in PLAN])
        for rule, score in rules.items():
            got = torch.cat([logits(model, b, score, drops=score is None) for b in work]).log_softmax(dim=1)
            drift = float((expected.exp() * (expected - got)).sum(dim=1).mean())
            agreement = float((expected.argmax(1) == got.argmax(1)).float().mean())
            share = total_macs(spec) / total_macs(dense.spec)
            rows.append({"model": name, "rule": rule, "macs": share, "drift": drift, "agreement": agreement})
            click.echo(str(rows[-1]))
    write_atomic(output / "token-rules.json", dumps({"images": IMAGES, "fitted": FITTED, "rows": rows}))
    write_atomic(output / "token-rules.md", table(rows))


SAID = {
    "stream": "bipartite matching by the cosine of the stream's rows",
    "keys": "the same by the keys' mean over heads (ToMe)",
    "distance": "the same by the distance of the stream's rows",
    "attended": "by that distance times the root of both tokens' attention in the block",
    "guarded": "by the cosine less what a fitted row says of how much a token matters (what the search uses)",
    "evit": "the least attended fused into one (EViT)",
}


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "# Which tokens to merge: rules at equal numbers of tokens",
        "",
        "`python -m benchmarks.token_rules`",
        "",
        f"Mean KL divergence from the dense model (drift) and equal classes on {IMAGES} unlabelled images, 70 pairs "
        "merged after block 4 and 50 after block 8, float32, no training; what is fitted is fitted on "
        f"{FITTED} others.",
        "",
        "| model | rule | MACs | drift | agreement |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {SAID[str(r['rule'])]} | {r['macs']:.3f} | {r['drift']:.4f} | {r['agreement']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
