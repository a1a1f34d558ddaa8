from __future__ import annotations

from collections import Counter

from benchmarks.arm import dense_blocks
from benchmarks.tvm_counts import Compiled
from benchmarks.tvm_kernels import Report, Spent, by_name, macs_of, render, report_name, times
from edgevit.program.macs import total_macs
from tests.report.sample import ENVIRONMENT


def test_multiply_adds_by_kernel_are_those_of_the_model() -> None:
    spec = dense_blocks(2).spec
    found = macs_of(spec)
    assert sum(found.values()) == total_macs(spec)
    assert found["q"] == spec.dim * spec.dim and found["qkv"] == 3 * spec.tokens * spec.dim**2


def test_all_calls_of_a_kernel_count() -> None:
    compiled = Compiled(
        functions={}, names={"a_0": "a", "a_1": "a", "b_2": "b"}, calls=Counter(a_0=2, a_1=1, b_2=3), weights_bytes=0
    )
    found = by_name(compiled, {"a_0": 1.0, "a_1": 4.0, "b_2": 0.5}, {"a": 10})
    assert found == (Spent(kernel="a", calls=3, ms=6.0, macs=10), Spent(kernel="b", calls=3, ms=1.5, macs=0))


def test_a_class_of_cpus_has_a_report_of_its_own() -> None:
    assert [report_name(kind) for kind in ("-vnni", "", "-128bit")] == [
        "tvm-kernels",
        "tvm-kernels-avx2",
        "tvm-kernels-128bit",
    ]


def test_every_kernel_runs_in_turn() -> None:
    order: list[str] = []
    found = times({name: lambda name=name: order.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert set(found) == {"a", "b"} and order[:8] == ["a"] * 4 + ["b"] * 4 and len(order) == 40


def test_shares_are_of_the_peak_and_of_the_whole() -> None:
    spent = (Spent(kernel="fc1", calls=12, ms=3.0, macs=600_000), Spent(kernel="norm", calls=25, ms=1.0, macs=0))
    report = Report(command="c", machine=ENVIRONMENT, target="t", flags=("avx2",), rounds=3, peak=4e8, spent=spent)
    text = render(report)
    assert "| fc1 | 12 | 3.000 | 75.0% | 0.6 | 0.50 |" in text
    assert "| norm | 25 | 1.000 | 25.0% | 0.0 | - |" in text and "| all | 37 | 4.000 | 100.0% | 0.6 | 0.38 |" in text
