"""The figures of README and docs are those of the files in reports/reference/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DENSE = {
    "float (ONNX Runtime)": "ORT fp32",
    "ONNX Runtime's own best static recipe": "ORT static, reduce_range",
    "**edgevit x86-64-avx2-onnxruntime** (7-bit weights)": "edgevit x86-64-avx2-onnxruntime",
    "**edgevit x86-64-onnxruntime** (8-bit; exact kernels where VNNI is missing)": "edgevit x86-64-onnxruntime",
    "**edgevit x86-64-openvino** (8-bit; computed in float where VNNI is missing)": "edgevit x86-64-openvino",
}
DENSE_VNNI = {
    "float (ONNX Runtime)": "ORT fp32",
    "ONNX Runtime's own best static recipe": "ORT static",
    "ONNX Runtime's dynamic int8": "ORT dynamic",
    "NNCF's fastest recipe, bf16 hint (OpenVINO)": "NNCF, PERFORMANCE, bf16 hint",
    "LiteRT's dynamic int8 (XNNPACK)": "LiteRT dynamic",
    "ExecuTorch's dynamic int8 (XNNPACK)": "ExecuTorch dynamic",
    "ncnn, stored as bf16": "ncnn bf16",
    "MNN, weights in 8 bits": "MNN, 8-bit weights",
    "**edgevit x86-64-avx512vnni-tvm**": "edgevit x86-64-avx512vnni-tvm",
    "**edgevit x86-64-avxvnni-tvm** (256 bits)": "edgevit x86-64-avxvnni-tvm",
    "**edgevit x86-64-openvino**": "edgevit x86-64-openvino",
    "**edgevit x86-64-onnxruntime**": "edgevit x86-64-onnxruntime",
    "**edgevit float, TVM**": "edgevit float, TVM",
}
DENSE_HALVED = {
    "float (ONNX Runtime)": "ORT fp32",
    "ONNX Runtime's own best static recipe": "ORT static, reduce_range",
    "ONNX Runtime's dynamic int8": "ORT dynamic, reduce_range",
    "NNCF's fastest recipe (OpenVINO)": "NNCF, PERFORMANCE, bf16 hint",
    "LiteRT's dynamic int8 (XNNPACK)": "LiteRT dynamic",
    "ExecuTorch's dynamic int8 (XNNPACK)": "ExecuTorch dynamic",
    "ncnn, float": "ncnn fp32",
    "MNN, weights in 8 bits": "MNN, 8-bit weights",
    "**edgevit x86-64-v3-tvm** (7-bit weights)": "edgevit x86-64-v3-tvm",
    "**edgevit x86-64-v2-tvm** (the same, SSE4.2 only)": "edgevit x86-64-v2-tvm",
    "**edgevit x86-64-avx2-onnxruntime** (7-bit weights)": "edgevit x86-64-avx2-onnxruntime",
    "**edgevit float, TVM**": "edgevit float, TVM",
}
BEST = {
    "peers": ("edgevit x86-64-avx2-onnxruntime",),
    "peers-vnni": ("edgevit x86-64-avx512vnni-tvm",),
    "peers-128bit": ("edgevit x86-64-v3-tvm",),
}
KINDS = (("usdc", "-recursive"), ("static", ""), ("dynamic", "-recursive"))
BUNDLES = {
    "CIFAR-10 at 48 pixels, 50 % of the MACs (`vit_tiny_cifar10`)": "cifar10",
    "CIFAR-10 at 48 pixels, 45 %": "cifar10-45",
    "ten ImageNet classes at 224 pixels, 48 %": "imagenette",
    "the same without following token streams": "imagenette-logits",
}
README = " ".join(
    " ".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    ).split()
)


def reference(name: str) -> Any:
    return json.loads((ROOT / "reports/reference" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("report", "said_of"), [("peers", DENSE), ("peers-vnni", DENSE_VNNI), ("peers-128bit", DENSE_HALVED)]
)
def test_dense_builds_are_what_the_report_says(report: str, said_of: dict[str, str]) -> None:
    rows = {(row["model"], row["name"]): row for row in reference(f"{report}.json")["rows"]}
    for said, name in said_of.items():
        cells = []
        for model in dict.fromkeys(model for model, _ in rows):
            row = rows[model, name]
            top1, agreement = (100 * row["accuracy"][key]["value"] for key in ("top1", "agreement"))
            share = f"{row['to_float']['value']:.2f}"
            share = f"**{share}**" if name in BEST[report] else share
            cells.append(f"{top1:.1f} / {agreement:.1f} % / {share}".replace("100.0 %", "100 %"))
        assert f"| {said} | {' | '.join(cells)} |" in README


def test_gates_cost_what_the_report_says() -> None:
    results = reference("gating.json")["results"]
    cost = {
        runtime: sorted(100 * (r["overhead"]["value"] - 1) for r in results if r["runtime"] == runtime)
        for runtime in ("ORT", "OV")
    }
    gap = max(
        100 * (path["time"]["value"] - path["macs"]) for r in results for path in r["paths"] if "of 24" in path["name"]
    )
    assert (
        f"Gates cost {cost['ORT'][0]:.1f} to {cost['ORT'][-1]:.1f} % (ONNX Runtime) and {cost['OV'][0]:.1f} to "
        f"{cost['OV'][-1]:.1f} % (OpenVINO) when all are open; k of 24 open costs "
        f"what its MACs say within {gap:.1f} points"
    ) in README


def test_gates_on_a_cpu_with_vnni_cost_what_the_report_says() -> None:
    results = {r["runtime"]: r for r in reference("gating-vnni.json")["results"]}
    opened = [f"{100 * (results[runtime]['overhead']['value'] - 1):.1f} %" for runtime in ("ORT", "OV", "TVM")]
    closed = [f"{results[runtime]['closed']['value']:.3f}" for runtime in ("ORT", "OV", "TVM")]
    assert f"gates cost {opened[0]} (ONNX Runtime), {opened[1]} (OpenVINO) and {opened[2]} (TVM) when all" in README
    assert f"With none open a run takes {closed[0]}, {closed[1]} and {closed[2]} of the model without gates" in README


@pytest.mark.parametrize(
    ("variant", "told"), [("plain", "no gates"), ("gated", "24 gates"), ("pruned, gated", "pruned and gated")]
)
def test_memory_is_what_the_report_says(variant: str, told: str) -> None:
    (row,) = (
        r
        for r in reference("memory.json")["onnxruntime"]
        if (r["model"], r["variant"]) == ("deit_tiny", f"{variant}, int8")
    )
    cells = (row["bound"]["arena_bytes"], row["peaks"]["all_open"], row["default_peak_bytes"])
    shown = " | ".join(f"{cell / 1e6:.2f} MB" for cell in cells)
    assert f"| deit_tiny, {told} | {shown} |" in README


def test_training_gives_what_the_report_says() -> None:
    rows = {row["name"]: row for row in reference("usdc.json")["rows"]}
    dense = rows["dense"]
    assert f"(dense {100 * dense['top1']['1']:.2f} % top-1" in README

    def cell(method: str) -> str:
        seeds = [row for name, row in rows.items() if name in (f"{method}-seed0", f"{method}-seed1")]
        if not seeds:
            return ""
        mean = sum(row["top1"]["1"] for row in seeds) / len(seeds)
        share = 100 * seeds[0]["bound_bytes"] / dense["bound_bytes"]
        return f"{100 * mean + 1e-9:.2f} %{', two seeds' if len(seeds) == 2 else ''}; {share:.0f} %"

    halved = [row["top1"].values() for name, row in rows.items() if name.startswith("usdc-50-")]
    moves = max(100 * (max(top1) - min(top1)) for top1 in halved)
    assert f"no USDC run at 50 % moves by more than {moves + 1e-9:.2f} points" in README
    for macs in (70, 50, 35):
        told = [cell(f"{kind}-{macs}{groups}") for kind, groups in KINDS]
        assert " ".join(f"| {macs} % | {' | '.join(told)} |".split()) in README


def test_trained_bundles_are_as_fast_as_the_reports_say() -> None:
    for said, name in BUNDLES.items():
        cells = [
            f"{r['mean_speedup']:.2f} x, {100 * (r['top1'] - r['dense_top1']):+.2f}"
            for r in reference(f"usdc-{name}.json")["results"]
        ]
        assert f"| {said} | {' | '.join(cells)} |" in README


def test_emulated_processors_execute_what_the_report_says() -> None:
    counts = {
        (row["int8"], row["cpu"]): f"{row['all_open'] / 1e6:.1f} M"
        for row in reference("arm.json")
        if row["model"] == "2 dense ViT-Ti blocks" and row["backend"] == "onnxruntime"
    }
    plain, a72 = (counts[int8, "cortex-a72"] for int8 in (False, True))
    a76, i8mm = (counts[True, cpu] for cpu in ("cortex-a76", "armv8.6-i8mm"))
    assert (
        f"two dense ViT-Ti blocks execute {plain} instructions in float on a Cortex-A72, and in int8 {a72} there, "
        f"{a76} on a Cortex-A76 and {i8mm} with i8mm"
    ) in README
    (merging,) = (
        row["estimate"]["paths"]
        for row in reference("arm.json")
        if (row["model"], row["backend"], row["int8"], row["cpu"])
        == ("shipped ViT-Ti, tokens merged", "onnxruntime", True, "cortex-a76")
    )
    for path in merging:
        (told,) = re.findall(rf"{path['path']} estimate, not measured: ([\d.]+) to ([\d.]+) M cycles", README)
        measured = [path[end] / 1e6 for end in ("lower_cycles", "upper_cycles")]
        # The session pasted there is a run of its own: Python's part moves by about 1 %.
        assert [float(end) for end in told] == pytest.approx(measured, rel=0.02, abs=0.2)


def test_builds_by_other_tools_execute_what_the_report_says() -> None:
    counts = {
        row["name"]: f"{row['instructions'] / 1e6:.1f} M"
        for row in reference("arm-peers.json")
        if row["cpu"] == "cortex-a76"
    }
    assert (
        f"LiteRT's dynamic int8 build of a dense DeiT-Ti executes {counts['LiteRT dynamic']}, ONNX Runtime's own "
        f"{counts['ONNX Runtime dynamic']}, TVM's kernels {counts['edgevit, TVM int8, kernels']}"
    ) in README


def test_merging_tokens_loses_what_the_report_says() -> None:
    rows = reference("tokens.json")["rows"]
    taken = {row["model"]: row["follows"] for row in rows if row["share"] == 0.7 and row["chosen"]}
    top1 = {
        (row["model"], row["runtime"], row["share"]): row["top1"]
        for row in rows
        if row["share"] == 1.0 or row["follows"] == taken[row["model"]]
    }
    models = ("deit_tiny", "vit_tiny")
    lost = [
        round(100 * (top1[model, "torch", 1.0] - top1[model, runtime, 0.7]), 1)
        for runtime in ("torch", "x86-64-onnxruntime")
        for model in models
    ]
    said = f"{lost[0]} and {lost[1]} points in float, {lost[2]} and {lost[3]} in int8"
    assert f"{said}, on DeiT-Ti and ViT-Ti" in README
    assert f"DeiT-Ti and ViT-Ti lose {said}" in README


def test_one_build_spans_what_the_report_says() -> None:
    points = {point["effort"]: point for point in reference("effort-curve.json")["points"]}
    most, least = (f"{points[effort]['time']['value']:.2f}" for effort in ("inf", "-inf"))
    assert f"takes {most} to {least} of the dense build's time" in README
    dense = reference("effort-curve.json")["dense_top1"]
    [lost] = {
        f"{100 * (dense - point['top1']):.1f}" for point in points.values() if f"{point['time']['value']:.2f}" == "0.66"
    }
    assert f"{lost} points lost at 0.66)" in README


def test_the_fastest_build_takes_what_the_report_says() -> None:
    rows = {(row["model"], row["name"]): row for row in reference("peers-vnni.json")["rows"]}
    dense, merged = (rows["deit_tiny", f"edgevit x86-64-avx512vnni-tvm{more}"] for more in ("", ", --macs 0.6"))
    assert dense["fastest_peer"].startswith("NNCF") and merged["fastest_peer"] == dense["fastest_peer"]
    shares = [f"{row[key]['value']:.2f}" for row in (dense, merged) for key in ("to_float", "to_fastest_peer")]
    assert f"takes {shares[0]} of ONNX Runtime's float time and {shares[1]} of NNCF's fastest int8 build" in README
    top1 = [f"{100 * row['accuracy']['top1']['value']:.1f} %" for row in (dense, merged)]
    assert f"with {top1[0]} top-1 (float 72.1)" in README
    assert f"with `--macs 0.6`, without training, {shares[2]} and {shares[3]}, with {top1[1]}" in README


def test_the_repair_of_merged_models_brings_what_the_report_says() -> None:
    rows = [row for row in reference("merge-repair.json")["rows"] if row["repaired"] and 0.49 < row["macs"] <= 0.5]
    lost = {row["runtime"]: f"{100 * (row['dense_top1'] - row['top1']):.1f}" for row in rows}
    said = f"half of its MACs loses {lost['torch']} points in float and {lost['x86-64-onnxruntime']} in int8 with it"
    assert said in README


def test_branches_that_are_skipped_lose_what_the_report_says() -> None:
    constant, maps = reference("stand-ins.json")["together"]
    assert round(constant["macs"], 2) == round(maps["macs"], 2) == 0.69
    said = f"leaves {constant['top1']:.0%} top-1 at 69% of the MACs, {maps['top1']:.0%} with a fitted linear map"
    assert said.replace("%", " %") in README


def test_methods_alone_and_together_lose_what_the_report_says() -> None:
    rows = {(r["model"], r["prune"], r["gate"], r["merge"], r["follows"]): r for r in reference("methods.json")["rows"]}

    def cell(prune: float, gate: float, merge: float | None, follows: bool) -> str:
        found = [rows.get((model, prune, gate, merge, follows)) for model in ("deit_tiny", "vit_tiny")]
        return " / ".join("-" if r is None else f"{100 * r['top1']:.1f}" for r in found)

    def line(said: str, *cells: str) -> str:
        return " ".join(f"| {said} | {' | '.join(cells)} |".split())

    shares = (0.8, 0.7, 0.6, 0.5)
    dense = cell(0.0, 1.0, None, False)
    assert f"MACs left: top-1 of deit_tiny / vit_tiny, dense {dense}" in README
    for said, follows in (("merging, fixed numbers", False), ("merging, numbers follow the image", True)):
        assert line(said, *(cell(0.0, 1.0, share, follows) for share in shares)) in README
    assert line("pruning", cell(0.2, 1.0, None, False), cell(0.3, 1.0, None, False), "", "") in README
    assert line("gates", cell(0.0, 0.8, None, False), cell(0.0, 0.7, None, False), "", "") in README
    assert line("a tenth pruned, then merging", "", *(cell(0.1, 1.0, share, False) for share in shares[1:])) in README
    # What the sentence behind the table says.
    for model in ("deit_tiny", "vit_tiny"):
        for share in shares[1:]:
            alone, mixed = (rows[model, prune, 1.0, share, False]["drift"] for prune in (0.0, 0.1))
            assert alone < mixed
