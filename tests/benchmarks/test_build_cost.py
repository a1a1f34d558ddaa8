from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.build_cost import STAGED, Cost, markdown, measure, stages, update
from benchmarks.staged_build import Build, Spent, Watch, spent
from edgevit.util.strict_json import to_data

COST = Cost(
    model="vit",
    parameters=2_000_000,
    float_bytes=8_000_000,
    model_bytes=2_000_000,
    dry_run_s=0.2,
    stages={"quantize": 3.0, "compile": 1.0, "verify": 2.0},
)


def test_a_stage_ends_where_the_next_line_is_said() -> None:
    said = [("Quantizing", 1.0), ("Lowering", 5.0), ("Compiling for tvm", 6.0), ("Verifying parity", 8.0)]
    said += [("a run touched 1 MB", 8.5), ("Writing the bundle", 9.0), ("end", 10.0)]
    assert stages(said) == {"quantize": 4.0, "compile": 4.0, "verify": 1.0}


def test_a_process_is_charged_for_its_children_and_its_peak() -> None:
    grand = "bytearray(90_000_000)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grand!r}], check=True); print(sys.argv[1])"
    found = measure([sys.executable, "-c", code, json.dumps(to_data(COST))])
    assert (found.model, found.stages) == (COST.model, COST.stages)
    assert found.cpu_s > 0 and found.wall_s > 0
    # The child's child held 90 MB; this process, whose size a child starts with, may hold more.
    assert found.peak_bytes > 90_000_000


def test_a_failed_build_is_no_row() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        measure([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_table_says_under_which_conditions() -> None:
    conditions = {"target": "x86-64-onnxruntime", "cpu": "Some CPU", "vnni": [], "cores": 2, "blas_threads": "1"}
    text = markdown([COST], {**conditions, "onnxruntime": "1.2.3"})
    assert "Some CPU (no VNNI), 2 cores, OMP_NUM_THREADS 1, onnxruntime 1.2.3, target x86-64-onnxruntime" in text
    assert "| vit | 2.0 M | 8 MB | 2 MB | 0 s | 3 s | 1 s | 2 s | 0 s | 0 MB | 0.0 | 0.2 s |" in text


TOLD: dict[str, Any] = {
    **{"command": "stages", "cpu": "Some CPU", "vnni": ["avx_vnni"], "cores": 2, "blas_threads": "all"},
    **{"target": "x86-64-v3-tvm", "tvm": "1.2", "load": [0.1, 1.9], "asked_s": 30.0},
}


def spent_s(wall: float, cpu: float) -> Spent:
    return Spent(wall_s=wall, cpu_s=cpu)


def test_what_one_run_tells_stays_when_another_tells_of_something_else(tmp_path: Path) -> None:
    gated = Build(
        model="gated",
        images=300,
        calibrating=240,
        stages={"quantizing": spent_s(10, 19), "points": spent_s(2, 2)},
        peak_bytes=600_000_000,
    )
    merged = replace(gated, model="merged", stages={"quantizing": spent_s(8, 15)})
    update(tmp_path, {STAGED: {**TOLD, "builds": to_data([gated, merged])}})
    assert (tmp_path / "build-cost.md").read_text().startswith("# What a build costs\n\n## Where the time goes")
    conditions = {"target": "x86-64-onnxruntime", "cpu": "Other", "vnni": [], "cores": 4, "blas_threads": "1"}
    update(tmp_path, {**conditions, "onnxruntime": "1", "builds": to_data([COST])})
    text = (tmp_path / "build-cost.md").read_text()
    for line in (
        "| vit | 2.0 M | 8 MB | 2 MB | 0 s | 3 s | 1 s | 2 s | 0 s | 0 MB | 0.0 | 0.2 s |",
        "| stage | gated: wall | CPU | merged: wall | CPU |",
        "| quantizing | 10.0 s | 19.0 s | 8.0 s | 15.0 s |",
        "| points | 2.0 s | 2.0 s | – | – |",
        "| all | 12.0 s | 21.0 s | 8.0 s | 15.0 s |",
        "| peak | 600 MB | | 600 MB | |",
    ):
        assert line in text
    assert "300 images, of which 240 calibrate" in text and "load 0.1 to 1.9" in text


def test_a_stage_lasts_until_the_next_one_begins() -> None:
    watch = Watch(began=0.0)
    for line in ("building for x", "Quantizing", "Verifying parity", "a run touched 1 MB", "Verifying accuracy"):
        watch.emit(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
    assert [name for name, _ in watch.marks] == ["Python, imports", "ranges, plan, rounding", "verifying"]
    marks = [("a", spent_s(0, 0)), ("b", spent_s(2, 1)), ("a", spent_s(3, 2))]
    assert spent(marks, spent_s(7, 9)) == {"a": spent_s(6, 8), "b": spent_s(1, 1)}
