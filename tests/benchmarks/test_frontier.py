"""The picture of accuracy against time shows what the report says."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.frontier import draw, points

REPORT = Path(__file__).parents[2] / "reports/reference/peers-vnni.json"


def test_every_point_is_a_row_of_the_report() -> None:
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    shown = points(report, "deit_tiny")
    rows = {(row["to_float"]["value"], 100 * row["accuracy"]["top1"]["value"]) for row in report["rows"]}
    assert {(time, top1) for _, time, top1, _ in shown} <= rows
    own = {label for label, *_, mine in shown if mine}
    dense = {f"x86-64-{name}" for name in ("avx512vnni-tvm", "avxvnni-tvm", "onnxruntime", "openvino", "v4-tvm")}
    assert {label for label in own if "--macs" not in label} == dense
    assert {label.partition(", --macs")[0] for label in own} == dense and len(own) > len(dense)
    assert ("ONNX Runtime, float", 1.0) in {(label, time) for label, time, *_ in shown}


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    for name in ("a.png", "b.png"):
        draw(report, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
