"""What benchmarks/methods.py measured, as a table and a picture; and what a mix of methods is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.schema.measurement import Environment

NAMES = {"deit_tiny": "DeiT-Ti", "vit_tiny": "ViT-Ti"}
# What a mix is drawn as: colour, marker, line.
STYLES = {
    "dense": ("black", "D", ""),
    "merge": ("tab:blue", "o", "-"),
    "merge per image": ("tab:orange", "o", "-"),
    "prune": ("tab:gray", "s", "-"),
    "gates": ("tab:olive", "^", "-"),
    "prune + merge": ("tab:green", "s", ""),
    "prune + gates": ("tab:brown", "X", ""),
    "gates + merge": ("tab:red", "^", ""),
    "prune + gates + merge": ("tab:purple", "P", ""),
}


# Variants of other tools that lie on top of one that is shown.
HIDDEN = ("reduce_range", "overflow_fix", "f32 hint")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What is done to a model: fraction pruned, share of the rest that gates run, share of all that merging leaves.

    With `follows` the numbers of merged tokens follow the image. Behind gates `merge` is the share of the same plan
    without them.
    """

    prune: float = 0.0
    gate: float = 1.0
    merge: float | None = None
    follows: bool = False

    @property
    def method(self) -> str:
        """Return its methods, in the order they are applied."""
        merging = "merge per image" if self.follows else "merge"
        parts = [("prune", self.prune > 0), ("gates", self.gate < 1), (merging, self.merge is not None)]
        return " + ".join(name for name, used in parts if used) or "dense"

    @property
    def name(self) -> str:
        """Return methods and settings for people."""
        merging = "" if self.merge is None else f"{'merge per image' if self.follows else 'merge'} to {self.merge:g}"
        pruning = f"prune {self.prune:g}" if self.prune else ""
        gating = f"gates {self.gate:g}" if self.gate < 1 else ""
        return ", ".join(part for part in (pruning, gating, merging) if part) or "dense"

    @property
    def slug(self) -> str:
        """Return a name for files."""
        return self.name.replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Row(Mix):
    """A mix as a target computes it in int8; MACs are the mean of the images and their 10th and 90th percentile.

    `drift` is the mean KL divergence from the dense float model; `time` CPU time over the dense int8 build's.
    """

    model: str
    target: str
    macs: float
    macs_low: float
    macs_high: float
    top1: float
    agreement: float
    drift: float
    images: int
    time: float = 1.0
    time_low: float = 1.0
    time_high: float = 1.0

    @property
    def mix(self) -> Mix:
        return Mix(prune=self.prune, gate=self.gate, merge=self.merge, follows=self.follows)


def best(rows: Sequence[Row], model: str) -> set[str]:
    """Return the slugs of the rows that no other row of the model beats: nearer to the dense model in no more time."""
    own = [r for r in rows if r.model == model]
    return {r.mix.slug for r in own if not any(o.drift < r.drift and o.time <= r.time for o in own if o.mix != r.mix)}


def table(rows: Sequence[Row], machine: Environment, rounds: int) -> str:
    """Return the report."""
    first = rows[0]
    lines = [
        "# Every method alone and together, without training",
        "",
        "`python -m benchmarks.methods`",
        "",
        f"Int8 builds for {first.target} on {machine.cpu}, {machine.cores} cores (load "
        f"{machine.load_average_before or 0:.1f} to {machine.load_average_after or 0:.1f}); one thread, process CPU "
        f"time over the dense int8 build's, median of {rounds} rounds in turns, with its 95 % interval. Top-1 on the "
        f"first {first.images} images of ImageNet's validation set; a difference between two builds has a standard "
        "error of about 0.5 points. Agreement and drift (mean KL divergence) are from the dense float model. 300 "
        "unlabelled images of another set to compress on, 64 of them for int8 ranges.",
        "",
        "Prune 0.1 removes a tenth of the MACs, gates 0.9 run nine tenths of the rest, merge to 0.7 leaves 0.7 of the "
        "dense model's MACs when what is pruned counts too; behind gates it is the plan that does so without them. "
        "MACs are the mean of the images, and where they differ from image to image the 10th and 90th percentile.",
        "",
        "Bold: no other build is nearer to the dense model in no more time.",
        "",
        "![Accuracy against MACs and time](methods.png)",
    ]
    for model in dict.fromkeys(r.model for r in rows):
        head = ("methods", "MACs", "time", "top-1", "agreement", "drift")
        lines += ["", f"## {model}", "", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
        unbeaten = best(rows, model)
        order = list(STYLES)
        own = [r for r in rows if r.model == model]
        for r in sorted(own, key=lambda r: (order.index(r.method), -r.macs)):
            name = f"**{r.name}**" if r.mix.slug in unbeaten else r.name
            spread = f" ({r.macs_low:.3f} to {r.macs_high:.3f})" if r.macs_high - r.macs_low > 0.001 else ""
            lines.append(
                f"| {name} | {r.macs:.3f}{spread} | {r.time:.3f} ({r.time_low:.3f} to {r.time_high:.3f}) | "
                f"{r.top1:.1%} | {r.agreement:.1%} | {r.drift:.4f} |"
            )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], peers: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw top-1 against MACs and, beside what other tools' int8 builds take, against time; a row per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(r.model for r in rows))
    figure, axes = plt.subplots(
        len(models), 2, figsize=(13, 4.6 * len(models)), sharey="row", squeeze=False, layout="constrained"
    )
    for pair, model in zip(axes, models, strict=True):
        own = [r for r in rows if r.model == model]
        dense = next(r for r in own if r.method == "dense")
        beside = [r for r in peers if r["model"] == model and not any(part in r["name"] for part in HIDDEN)]
        # Times over ONNX Runtime's float model, as peers have them.
        unit = next((r["to_float"]["value"] for r in beside if r["name"] == f"edgevit {dense.target}"), None)
        for axis, timed in zip(pair, (False, True), strict=True):
            for method, (colour, marker, line) in STYLES.items():
                found = sorted((r for r in own if r.method == method), key=lambda r: -r.macs)
                along = [(r.time * (unit or 1.0) if timed else r.macs) for r in found]
                axis.plot(
                    along,
                    [100 * r.top1 for r in found],
                    linestyle=line or "none",
                    marker=marker,
                    color=colour,
                    markersize=6,
                    label=method,
                )
            axis.set_title(f"{NAMES.get(model, model)}: {'time' if timed else 'MACs'}")
            axis.set_ylim(min(100 * dense.top1 - 14, 60), 100 * dense.top1 + 2)
            axis.grid(alpha=0.3)
        others = [r for r in beside if not r["own"] and r["int8"] and r["accuracy"]] if unit else []
        for number, r in enumerate(sorted(others, key=lambda r: r["to_float"]["value"]), start=1):
            place = (r["to_float"]["value"], 100 * r["accuracy"]["top1"]["value"])
            pair[1].plot(*place, "x", color="black", markersize=7, label=f"{number}  {r['name']}")
            pair[1].annotate(str(number), place, fontsize=8, xytext=(4, 4), textcoords="offset points")
        pair[0].set_ylabel(f"top-1, % (n = {dense.images})")
        pair[0].set_xlabel("MACs, of the dense model")
        pair[1].set_xlabel("CPU time, of ONNX Runtime's float model" if unit else "CPU time, of the dense int8 build")
    axes[0][0].legend(fontsize=8, loc="lower right")
    for _, axis in axes:
        shown = [(h, said) for h, said in zip(*axis.get_legend_handles_labels(), strict=True) if said[0].isdigit()]
        if shown:
            axis.legend(*zip(*shown, strict=True), fontsize=8, loc="lower right", title="int8 by other tools")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
