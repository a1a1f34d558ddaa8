"""The README's figures are those of the files in reports/reference/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def reference(name: str) -> Any:
    return json.loads((ROOT / "reports/reference" / name).read_text(encoding="utf-8"))


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

    def mean(method: str, batch: str = "1") -> str:
        seeds = [row["top1"][batch] for name, row in rows.items() if name in (f"{method}-seed0", f"{method}-seed1")]
        assert len(seeds) == (1 if method.startswith("dynamic") else 2)
        return f"{100 * sum(seeds) / len(seeds) + 1e-9:.2f} %"

    dense, both = rows["dense"], "usdc-50-recursive"
    share = 100 * rows[f"{both}-seed0"]["bound_bytes"] / dense["bound_bytes"]
    assert f"(dense {100 * dense['top1']['1']:.2f} % top-1): {mean(both)} at batch 1, " in README
    assert f"{mean(both, '256')} at batch 256, with {share:.0f} % of the dense model's memory bound" in README
    assert f"to the same MACs {mean('static-50')}; gates alone, one seed, {mean('dynamic-50-recursive')}" in README
    at_70 = [f"{100 * rows[f'{name}-seed0']['top1']['1']:.2f} %" for name in ("usdc-70-recursive", "static-70")]
    assert f"one seed, both reach {at_70[0]}, pruning alone {at_70[1]}" in README


def test_trained_bundles_take_what_the_reports_say() -> None:
    def told(name: str) -> tuple[list[str], list[str]]:
        results = reference(f"usdc-{name}.json")["results"]
        shares = {f"{r['paths']['real images']['value']:.2f}" for r in results}
        return sorted(shares), sorted({f"{100 * (r['dense_top1'] - r['top1']):.1f}" for r in results})

    shares, points = told("cifar10")
    assert f"take {' to '.join(shares)} of the dense int8 bundle's time and lose {' to '.join(points)}" in README
    shares, points = told("cifar10-45")
    assert f"of the MACs they take {' to '.join(shares)} of the time and lose {' to '.join(points)} points" in README
    shares, points = told("imagenette")
    assert f"half the MACs take {' to '.join(shares)} of the time and lose {' to '.join(points)} points" in README


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
    (gated,) = (
        row["estimate"]["paths"]
        for row in reference("arm.json")
        if (row["model"][:7], row["backend"], row["int8"], row["cpu"]) == ("shipped", "onnxruntime", True, "cortex-a76")
    )
    for path in gated:
        (told,) = re.findall(rf"{path['path']} estimate, not measured: ([\d.]+) to ([\d.]+) M cycles", README)
        measured = [path[end] / 1e6 for end in ("lower_cycles", "upper_cycles")]
        # The session pasted there is a run of its own: Python's part moves by about 1 %.
        assert [float(end) for end in told] == pytest.approx(measured, rel=0.02, abs=0.2)
