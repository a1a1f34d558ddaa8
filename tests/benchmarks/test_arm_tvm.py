"""TVM's instructions beside ONNX Runtime's: the same model, and a table that holds what was asked against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.arm_tvm import ASKED, CPUS, Row, counted, render, target

REFERENCE = Path(__file__).resolve().parents[2] / "reports" / "reference"


def test_onnx_runtimes_figures_are_those_of_the_same_model() -> None:
    known = counted(REFERENCE / "arm.json")
    assert {(cpu, int8) for cpu in CPUS for int8 in (False, True)} <= set(known)
    assert all(count > 1e6 for count in known.values())


@pytest.mark.parametrize("cpu", CPUS)
def test_both_kinds_are_built_for_the_same_processor(cpu: str) -> None:
    made = {int8: target(cpu, int8=int8) for int8 in (False, True)}
    assert all(t.int8 is int8 and t.cpu == cpu and t.backend == "tvm" for int8, t in made.items())
    assert made[True].weight_bits == 8  # smlal and sdot are exact with all bits


def test_the_table_gives_ratios() -> None:
    row = Row(
        cpu="cortex-a72",
        int8=False,
        taken=True,
        instructions=45e6,
        classes={"multiply_add": 40e6},
        onnxruntime=50e6,
        emulator="qemu",
    )
    text = render([row])
    assert "| cortex-a72 | float, what the target takes | 45.0 | 50.0 | 0.90 | 40.0 | 0.0 | 0.0 |" in text


def test_what_is_reported_meets_what_was_asked_where_the_target_takes_it() -> None:
    path = REFERENCE / "arm-tvm.json"
    taken = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["taken"]]
    assert {row["cpu"] for row in taken} == set(CPUS)
    assert all(row["instructions"] <= ASKED * row["onnxruntime"] for row in taken)


def test_onnx_runtimes_column_is_that_of_its_own_report() -> None:
    """After new counts there: python -m benchmarks.arm_tvm."""
    known = counted(REFERENCE / "arm.json")
    rows = json.loads((REFERENCE / "arm-tvm.json").read_text(encoding="utf-8"))
    assert {(row["cpu"], row["int8"]): row["onnxruntime"] for row in rows} == {
        (cpu, int8): known[cpu, int8] for cpu in CPUS for int8 in (False, True)
    }
