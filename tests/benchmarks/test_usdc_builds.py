from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.timing import Ratio
from benchmarks.usdc_builds import REAL, Built, Report, table, verdict
from edgevit.measure.environment import environment, snapshot

BUILT = Built(
    target="x86-64-onnxruntime",
    dense_float_top1=0.986,
    dense_top1=0.984,
    top1=0.974,
    images=500,
    dense_bound_bytes=8_000_000,
    bound_bytes=6_000_000,
    dense_model_bytes=6_000_000,
    model_bytes=6_000_000,
    dense_cpu_ms=10.0,
    paths={REAL: Ratio(value=0.5, low=0.49, high=0.51)},
    mean_speedup=2.0,
)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "met"),
        ({"mean_speedup": 1.79}, "**missed: speed**"),
        ({"top1": 0.972}, "**missed: points**"),
        ({"top1": 0.972, "mean_speedup": 1.0}, "**missed: speed, points**"),
    ],
)
def test_what_is_missed_is_said_by_name(changed: dict[str, float], said: str) -> None:
    """One point of 500 images is exactly a point, whatever floats make of it."""
    assert verdict(replace(BUILT, **changed)) == said  # type: ignore[arg-type]


def test_a_program_without_gates_has_one_path_in_the_table() -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="all", runtime_version="1", inference_precision="per target", threads=1
    )
    text = table(
        Report(command="python -m benchmarks.usdc_builds", name="some", machine=machine, runs=9, results=(BUILT,))
    )
    assert "| x86-64-onnxruntime | 98.60%, 98.40% | 97.40% | -1.00 | 2.00 |" in text
    assert "|  |  | 6.00 of 8.00 MB | met |" in text
