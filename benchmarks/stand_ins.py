"""Ask whether a linear map of the stream should stand in for a branch that a gate skips, instead of constant rows.

    EDGEVIT_DATA=DIR python -m benchmarks.stand_ins -o reports/reference

The map is fitted in closed form on unlabelled images (ridge regression of the branch's output on its normalised input,
one row added to the class token and one to the patches; TOAST, arXiv 2410.04941, has the idea). First every branch is
skipped alone, then several at once, visited in order: each is fitted to bring the stream back to the dense model's, and
so is the output linear of every branch that stays. EDGEVIT_DATA is that of benchmarks/tokens.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.compression_curve import MODELS
from edgevit.compress.prune.observe import PREFIX_WEIGHT, keep_input, output_linear, row_weights
from edgevit.compress.prune.refit import HELD_OUT, RIDGES, NormalEquations
from edgevit.compress.tokens.drift import drift, logits
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.program.macs import macs_by_branch, rows_out, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.torch_form.stream import batches, step_branch
from edgevit.torch_form.vit import Vit
from edgevit.util.strict_json import dumps, write_atomic

FITTED, JUDGED, LEFT = 240, 60, 0.7
Maps = Mapping[str, Tensor]  # `[D + prefix + 1, D]`: weight, then the rows that are added


@dataclass(frozen=True, kw_only=True)
class Alone:
    """One branch skipped. `missed` is the part of the output's variance that the map does not explain.

    Drifts are nats per image from the dense model; `saved` are shares of its MACs.
    """

    branch: str
    missed: float
    constant_drift: float
    constant_saved: float
    linear_drift: float
    linear_saved: float

    @property
    def linear(self) -> bool:
        """Whether the map drifts less for what it saves."""
        return self.linear_drift / self.linear_saved < self.constant_drift / self.constant_saved

    def cost(self, maps: bool) -> tuple[float, float]:
        """Drift and saving of the cheaper stand-in, or of constant rows."""
        if maps and self.linear:
            return self.linear_drift, self.linear_saved
        return self.constant_drift, self.constant_saved


@dataclass(frozen=True, kw_only=True)
class Together:
    """Several branches skipped for all images, about `LEFT` of the MACs left; top-1 and agreement on other images."""

    name: str
    constant: tuple[str, ...]
    linear: tuple[str, ...]
    macs: float
    drift: float
    top1: float
    agreement: float
    dense_top1: float
    images: int


def inputs(model: Vit, branch: BranchSpec, x: Tensor) -> Tensor:
    """What a map reads, `[B, N, D + prefix + 1]`: the normalised stream, and which row it is."""
    kinds = model.indicator[: x.shape[1]].expand(len(x), -1, -1)
    return torch.cat([model.norm(f"{branch.name}.norm", x), kinds], dim=2)


def fit(model: Vit, branch: BranchSpec, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, float]:
    """The map, the constant rows alone, and what the map misses on held-out batches, from (stream, target after it)."""
    dim, rows = model.spec.dim, model.spec.stem.prefix + 1
    sums = [NormalEquations(dim + rows, dim) for _ in range(2)]
    total = 0.0
    for number, (x, target) in enumerate(pairs):
        weights, held = row_weights(model.spec, target, PREFIX_WEIGHT), number % HELD_OUT == HELD_OUT - 1
        sums[held].add_rows(inputs(model, branch, x), target - x, weights)
        total += float((weights[..., None] * (target - x).square()).sum()) if held else 0.0
    gram, cross = sums[0].gram, sums[0].cross
    there = gram[dim:, dim:].diag()[:, None]
    constant = torch.cat([torch.zeros(dim, dim, dtype=gram.dtype), cross[dim:] / there])
    means = gram[dim:, :dim] / there
    shared = cross[:dim] - gram[:dim, dim:] @ (cross[dim:] / there)
    values, vectors = torch.linalg.eigh(gram[:dim, :dim] - gram[:dim, dim:] @ means)
    found = []
    for ridge in RIDGES:
        weight = vectors @ ((vectors.T @ shared) / (values.clamp_min(0) + 0.1 * ridge * values.mean())[:, None])
        found.append(torch.cat([weight, cross[dim:] / there - means @ weight]))
    best = min(found, key=sums[1].error)
    missed = (sums[1].error(best) + total) / (sums[1].error(constant) + total)
    return best.float(), constant.float(), missed


@torch.no_grad()
def alone(program: Program, fitted: np.ndarray, judged: np.ndarray) -> list[Alone]:
    """Skip every branch alone."""
    spec, model = program.spec, Vit(program).eval()
    whole, rows, spent = total_macs(spec), rows_out(spec), macs_by_branch(spec)
    streams = [model.stem(batch) for batch in batches(spec, fitted)]
    shown = torch.cat(batches(spec, judged))
    expected, before = logits(model, shown), model.stem(shown)
    found = []
    for index, branch in enumerate(spec.branches):
        after = [step_branch(model, branch, x) for x in streams]
        linear, constant, missed = fit(model, branch, list(zip(streams, after, strict=True)))

        def skipped(stand_in: Tensor, index: int = index, before: Tensor = before) -> float:
            x = before + inputs(model, spec.branches[index], before) @ stand_in
            for later in spec.branches[index + 1 :]:
                x = step_branch(model, later, x)
            return drift(spec, expected, model.head(x))

        found.append(
            Alone(
                branch=branch.name,
                missed=missed,
                constant_drift=skipped(constant),
                constant_saved=spent[index] / whole,
                linear_drift=skipped(linear),
                linear_saved=(spent[index] - rows[index] * spec.dim**2) / whole,
            )
        )
        streams, before = after, step_branch(model, branch, before)
    return found


def choose(rows: Sequence[Alone], *, maps: bool) -> tuple[list[str], list[str]]:
    """Branches to skip with constant rows and with maps, least drift per MAC first, until `LEFT` is left.

    At most one of a block: branches that lie side by side make up for each other, so their drifts do not add up.
    """
    constant, linear, saved = list[str](), list[str](), 0.0
    for row in sorted((r for r in rows if r.linear_saved > 0.01), key=lambda r: r.cost(maps)[0] / r.cost(maps)[1]):
        if saved < 1 - LEFT and not any(name[:3] == row.branch[:3] for name in (*constant, *linear)):
            (linear if maps and row.linear else constant).append(row.branch)
            saved += row.cost(maps)[1]
    return constant, linear


@torch.no_grad()
def together(
    name: str, program: Program, constant: Sequence[str], linear: Sequence[str], images: np.ndarray, held: ImageSet
) -> Together:
    """Skip branches for all images; what stays is fitted to the dense stream again."""
    spec, dense, model = program.spec, Vit(program).eval(), Vit(program).eval().requires_grad_(False)
    streams = [(x, x) for x in map(dense.stem, batches(spec, images))]
    maps: dict[str, Tensor] = {}
    for branch in spec.branches:
        pairs = [(x, step_branch(dense, branch, target)) for target, x in streams]
        if branch.name in (*constant, *linear):
            mapped, rows, _ = fit(model, branch, pairs)
            maps[branch.name] = mapped if branch.name in linear else rows
        elif maps:
            _refit(model, branch, pairs)
        streams = [(target, _step(model, branch, x, maps)) for x, target in pairs]
    expected, got = [], []
    for batch in batches(spec, held.images):
        x = model.stem(batch)
        for branch in spec.branches:
            x = _step(model, branch, x, maps)
        got.append(model.head(x))
        expected.append(logits(dense, batch))
    right, said = torch.cat(expected), torch.cat(got)
    cost = dict(zip((b.name for b in spec.branches), macs_by_branch(spec), strict=True))
    maps_cost = sum(r * spec.dim**2 for b, r in zip(spec.branches, rows_out(spec), strict=True) if b.name in linear)
    assert held.labels is not None
    return Together(
        name=name,
        constant=tuple(constant),
        linear=tuple(linear),
        macs=1 - (sum(cost[n] for n in maps) - maps_cost) / total_macs(spec),
        drift=drift(spec, right, said),
        top1=float((said.argmax(1).numpy() == held.labels).mean()),
        agreement=float((said.argmax(1) == right.argmax(1)).float().mean()),
        dense_top1=float((right.argmax(1).numpy() == held.labels).mean()),
        images=len(said),
    )


def _step(model: Vit, branch: BranchSpec, x: Tensor, maps: Maps) -> Tensor:
    return x + inputs(model, branch, x) @ maps[branch.name] if branch.name in maps else step_branch(model, branch, x)


def _refit(model: Vit, branch: BranchSpec, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """What `edgevit.compress.prune.refit` does to one branch."""
    sums, inner = [NormalEquations(branch.width + 1, model.spec.dim) for _ in range(2)], list[Tensor]()
    for number, (x, target) in enumerate(pairs):
        missing = target - step_branch(model, branch, x, keep_input(branch, inner))
        weights = row_weights(model.spec, target, PREFIX_WEIGHT)
        sums[number % HELD_OUT == HELD_OUT - 1].add(inner.pop(), missing, weights)
    best = min(sums[0].solutions(RIDGES), key=sums[1].error)
    if sums[1].error(best) < 0:
        model.array(f"{output_linear(branch)}.weight").add_(best[:-1].float())
        model.array(f"{output_linear(branch)}.bias").add_(best[-1].float())


def table(model: str, rows: Sequence[Alone], runs: Sequence[Together]) -> str:
    """The results as a markdown document."""
    lines = [
        "# Should a linear map stand in for a skipped branch?",
        "",
        f"`python -m benchmarks.stand_ins --model {model}`",
        "",
        f"{model}, float32, no labels: maps are fitted on {FITTED} images and judged on {JUDGED} others. Drift: mean "
        "KL divergence from the dense model's classes, in nats. Saved: share of the dense model's MACs. The map is the "
        "full one, width x width on the normalised stream.",
        "",
        "| branch skipped for all images | output variance that the map misses | constant rows: drift | saved | map: "
        "drift | saved | less drift per MAC saved |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r.branch} | {r.missed:.0%} | {r.constant_drift:.3f} | {r.constant_saved:.1%} | {r.linear_drift:.3f} "
            f"| {r.linear_saved:.1%} | {'map' if r.linear else 'constant rows'} |"
        )
    if runs:
        lines += [
            "",
            f"Several skipped for all images, the best by this table, one of a block at most; then everything that "
            f"stays is fitted to the dense stream again. Top-1 on {runs[0].images} images of ImageNet's validation set "
            f"(dense: {runs[0].dense_top1:.1%}).",
            "",
            "| skipped with | constant rows | map | MACs | drift | top-1 | agreement |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {r.name} | {', '.join(r.constant)} | {', '.join(r.linear)} | {r.macs:.3f} | {r.drift:.3f} "
            f"| {r.top1:.1%} | {r.agreement:.1%} |"
            for r in runs
        ]
    return "\n".join(lines) + "\n"


@click.command(epilog="Example: python -m benchmarks.stand_ins -o reports/reference")
@click.option("--model", default="deit_tiny", show_default=True, type=click.Choice(sorted(MODELS)))
@click.option("--data", required=True, envvar="EDGEVIT_DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--images", default=300, show_default=True, type=click.IntRange(1), help="Images for top-1.")
@click.option("-o", "--output", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(model: str, data: Path, images: int, output: Path) -> None:
    """Measure what a linear map in the place of a skipped branch saves and loses."""
    torch.set_num_threads(1)
    program = from_timm(MODELS[model], weights=data / f"{MODELS[model]}.safetensors")
    known = load_images(data / "imagenet-sample-1000.tar", program.spec.image, limit=FITTED + JUDGED).images
    held = load_images(data / "imagenet-val-1000.tar", program.spec.image, labelled=True, limit=images)
    output.mkdir(parents=True, exist_ok=True)
    rows, runs = alone(program, known[:FITTED], known[FITTED:]), list[Together]()

    def keep() -> None:
        written = {"model": model, "alone": [asdict(r) for r in rows], "together": [asdict(r) for r in runs]}
        write_atomic(output / "stand-ins.json", dumps(written))
        write_atomic(output / "stand-ins.md", table(model, rows, runs))

    keep()
    kinds: Mapping[str, Callable[[], tuple[list[str], list[str]]]] = {
        "constant rows": lambda: choose(rows, maps=False),
        "maps where they drift less": lambda: choose(rows, maps=True),
    }
    for name, chosen in kinds.items():
        runs.append(together(name, program, *chosen(), known, held))
        keep()


if __name__ == "__main__":
    main()
