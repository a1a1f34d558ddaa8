"""Draw accuracy against time from a report of `benchmarks.peers`: one point per build, edgevit's and the runtimes' own.

python -m benchmarks.frontier reports/reference/peers-vnni.json -o docs/pictures/accuracy-time.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

OWN, PEER = "#0b6e4f", "#8a8f98"
MODELS = {"deit_tiny": "DeiT-Ti", "vit_tiny": "ViT-Ti"}
# Builds that differ from one shown here only in rounding lie on top of it; v2 is for CPUs without AVX.
HIDDEN = ("reduce_range", "overflow_fix", "edgevit float", "avx2-onnxruntime", "v2-tvm", "v3-tvm", "NNCF, f32 hint")
SHORT = {
    "ORT fp32": "ONNX Runtime, float",
    "ORT static": "ONNX Runtime, static int8",
    "ORT dynamic": "ONNX Runtime, dynamic int8",
    "ORT by hand": "ONNX Runtime, QAttention by hand",
    "OV f32": "OpenVINO, float32",
    "OV default": "OpenVINO, its default (bf16)",
    "NNCF, bf16 hint": "NNCF int8, bf16",
    "NNCF, PERFORMANCE, bf16 hint": "NNCF PERFORMANCE, bf16",
}


def points(report: dict[str, Any], model: str) -> list[tuple[str, float, float, bool]]:
    """Return (label, time as a share of ONNX Runtime's float model, top-1 in %, whether it is edgevit's) per build."""
    rows = (r for r in report["rows"] if r["model"] == model and r["accuracy"])
    return [
        (
            SHORT.get(row["name"], row["name"].removeprefix("edgevit ")),
            row["to_float"]["value"],
            100 * row["accuracy"]["top1"]["value"],
            row["own"],
        )
        for row in rows
        if not any(part in row["name"] for part in HIDDEN)
    ]


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG: a panel per model, time to the right, top-1 upwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, panels = plt.subplots(1, len(MODELS), figsize=(12, 5.4), layout="constrained")
    numbers: dict[tuple[str, bool], int] = {}
    for axes, (model, title) in zip(panels, MODELS.items(), strict=True):
        shown = points(report, model)
        for label, time, top1, own in shown:
            number = numbers.setdefault((label, own), len(numbers) + 1)
            axes.plot(time, top1, "o", ms=15, color=OWN if own else PEER, alpha=0.9)
            axes.text(time, top1, str(number), ha="center", va="center_baseline", fontsize=8, color="white")
        axes.set(title=title, xlabel="CPU time, as a share of ONNX Runtime's float model")
        axes.set_xlim(0.1, max(1.1, *(time + 0.05 for _, time, *_ in shown)))
        axes.set_ylim(min(p[2] for p in shown) - 0.5, max(p[2] for p in shown) + 0.5)
        axes.set_ylabel(f"top-1 in % (n = {report['images']})")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    handles = [
        Line2D([], [], ls="", marker="o", color=OWN if own else PEER, label=f"{n}  {'edgevit ' * own}{label}")
        for (label, own), n in sorted(numbers.items(), key=lambda item: item[1])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    flags = ", ".join(f for f in report["machine"]["isa"] if f in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8"))
    said = f"One thread, batch 1, {report['machine']['cpu']} ({flags})"
    figure.suptitle(f"Dense models, and merged tokens (--macs): up and left is better.\n{said}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/pictures/accuracy-time.png"))
def main(report: Path, output: Path) -> None:
    """Draw one report."""
    draw(json.loads(report.read_text(encoding="utf-8")), output)


if __name__ == "__main__":
    main()
