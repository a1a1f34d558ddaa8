from __future__ import annotations

import json
import sys

import pytest

from benchmarks.build_cost import Cost, markdown, measure, stages
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
