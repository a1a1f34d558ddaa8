"""The table and the picture of benchmarks/usdc.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BATCHES = ("256", "64", "32", "8", "2", "1")
METHODS = {
    "longer": "nothing removed, trained on as long",
    "usdc": "both (USDC)",
    "long": "both (USDC), recovery three times as long",
    "tokens": "both (USDC), following token streams",
    "static": "static only",
    "dynamic": "dynamic only",
}


def parts(name: str) -> tuple[str, int, str, int]:
    """Method, MACs in percent, groups and seed of a run's name."""
    pieces = name.split("-")
    groups = pieces[2].replace("_", " ") if len(pieces) == 4 else ""
    return pieces[0], int(pieces[1]), groups, int(pieces[-1].removeprefix("seed"))


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def spread(values: Sequence[float]) -> str:
    """One value, or mean and half the range of several."""
    if len(values) == 1:
        return percent(values[0])
    half = (max(values) - min(values)) / 2
    return f"{percent(sum(values) / len(values))} ± {percent(half)} (n = {len(values)})"


def table(rows: Sequence[Row]) -> str:
    """Both tables in Markdown."""
    dense = next(r for r in rows if r["name"] == "dense")
    others = [r for r in rows if r["name"] != "dense"]
    return "\n".join([*_head(dense), *_methods(dense, others), "", *_batch_sizes(dense, others), "", *_cost(rows), ""])


def _head(dense: Row) -> list[str]:
    r = dense["recipe"]
    return [
        "# Static pruning and dynamic gates, together and apart",
        "",
        "ViT-Ti/16 (ImageNet-21k weights) on CIFAR-10 scaled to 48 x 48 pixels; trained on the training set but for "
        f"the {r['threshold_images']} images that set thresholds; top-1 on all {dense['images']} test images (standard "
        "error about 0.35 points, less between models on the same images). Dense: fine-tuned for "
        f"{r['epochs_recover']} epochs; it is the teacher of all others. MACs, weights and the memory bound (ONNX "
        "Runtime, int8, every gate open) are fractions of the dense "
        "model's. No test image was used in training or for thresholds.",
        "",
        f"Dense: top-1 {percent(dense['top1']['1'])} %, {dense['weights'] / 1e6:.2f} M weights, bound "
        f"{dense['bound_bytes'] / 1e6:.2f} MB.",
        "",
    ]


def _methods(dense: Row, rows: Sequence[Row]) -> list[str]:
    lines = [
        "## The same MACs, three ways (inference batch 1)",
        "",
        "| expected MACs asked | method | top-1, % | to dense, points | MACs | all-open MACs | weights | bound | "
        "heads, neurons, branches left | gates that vary |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    keys = sorted({(-parts(r["name"])[1], list(METHODS).index(parts(r["name"])[0])) for r in rows})
    for macs, index in keys:
        method = list(METHODS)[index]
        same = [r for r in rows if parts(r["name"])[:2] == (method, -macs) and parts(r["name"])[2] in ("", "recursive")]
        if not same:
            continue
        tops = [r["top1"]["1"] for r in same]
        first = same[0]
        lines.append(
            f"| {-macs} % | {METHODS[method]} | {spread(tops)} | "
            f"{100 * (sum(tops) / len(tops) - dense['top1']['1']):+.2f} | {first['macs']['1']:.1%} | "
            f"{first['static_macs']:.1%} | {first['weights'] / dense['weights']:.1%} | "
            f"{first['bound_bytes'] / dense['bound_bytes']:.1%} | "
            f"{first['heads']}, {first['neurons']}, {first['branches']} | {first['gates_that_vary']} |"
        )
    return lines


def _batch_sizes(dense: Row, rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Trained at batch 256, used at another batch size (both methods, 50 % MACs)",
        "",
        "Top-1, %, by the groups that shared a gate's decision in training; at inference the group is the batch.",
        "",
        "| groups | " + " | ".join(f"batch {b}" for b in BATCHES) + " | largest difference | MACs at 1 |",
        "| --- |" + " ---: |" * (len(BATCHES) + 2),
    ]
    groups = sorted({parts(r["name"])[2] for r in rows if parts(r["name"])[:2] == ("usdc", 50)})
    for group in groups:
        same = [r for r in rows if parts(r["name"])[:3] == ("usdc", 50, group)]
        means = [sum(r["top1"][b] for r in same) / len(same) for b in BATCHES]
        cells = " | ".join(percent(m) for m in means)
        runs = f" (n = {len(same)})" if len(same) > 1 else ""
        macs = sum(r["macs"]["1"] for r in same) / len(same)
        lines.append(f"| {group}{runs} | {cells} | {100 * (max(means) - min(means)):.2f} | {macs:.1%} |")
    return lines


def _cost(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## What training cost",
        "",
        "One thread a run, two runs at a time, on a machine that also did other work; images/s are medians over steps.",
        "",
        "| run | images/s, joint | images/s, recover | peak memory |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        speed = [f"{row['images_per_s'][s]:.0f}" if s in row["images_per_s"] else "" for s in ("joint", "recover")]
        peak = row.get("peak_memory_bytes")
        lines.append(f"| {row['name']} | {' | '.join(speed)} | {f'{peak / 1e9:.2f} GB' if peak else ''} |")
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against expected MACs per method, and against the inference batch per group mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.4))
    dense, others = next(r for r in rows if r["name"] == "dense"), [r for r in rows if r["name"] != "dense"]
    left.plot([100], [100 * dense["top1"]["1"]], "k*", label="dense")
    for method, label in METHODS.items():
        same = [r for r in others if parts(r["name"])[0] == method and parts(r["name"])[2] in ("", "recursive")]
        points = [(100 * r["macs"]["1"], 100 * r["top1"]["1"]) for r in same]
        if points:
            budgets = sorted({parts(r["name"])[1] for r in same})
            at = [_mean([p for p, r in zip(points, same, strict=True) if parts(r["name"])[1] == b]) for b in budgets]
            (line,) = left.plot(*zip(*at, strict=True), "-", label=label)
            left.plot(*zip(*points, strict=True), "o", color=line.get_color())
    left.set_xlabel("expected MACs, % of dense")
    left.set_ylabel("top-1, %")
    left.invert_xaxis()
    halved = [r for r in others if parts(r["name"])[:2] == ("usdc", 50)]
    for group in sorted({parts(r["name"])[2] for r in halved}):
        same = [r for r in halved if parts(r["name"])[2] == group]
        means = [_mean([(int(b), 100 * r["top1"][b]) for r in same]) for b in BATCHES]
        right.plot(*zip(*means, strict=True), "o-", label=f"{group} (n = {len(same)})")
    right.set_xscale("log", base=2)
    right.set_xticks([int(b) for b in BATCHES], BATCHES)
    right.set_xlabel("inference batch size (trained at 256)")
    right.set_ylabel("top-1, %")
    left.set_title("lines: means over seeds", fontsize=9)
    right.set_title("both methods, 50 % MACs: means over seeds", fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The middle of some points."""
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
