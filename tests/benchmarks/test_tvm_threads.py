"""Two threads against one: what the table makes of the times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import tvm_threads
from benchmarks.timing import median_interval
from benchmarks.tvm_threads import FEWER, ONE, TWO, Apart, Kernels, Report, at_once, of_class, render, speedups
from edgevit.measure.environment import environment, snapshot


def test_a_speedup_is_paired_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is three times as slow every second round; that is nobody's speed-up."""
    monkeypatch.setattr(tvm_threads, "PAUSE_S", 0)
    counts = dict.fromkeys((ONE, TWO, FEWER), 0)

    def runner(way: tuple[int, int], ms: float) -> Callable[[int], tuple[float, float]]:
        def run(_: int) -> tuple[float, float]:
            counts[way] += 1
            slow = 3 if counts[way] % 2 else 1
            return slow * ms, 2 * ms

        return run

    ways = {ONE: 18.0, TWO: 10.0, FEWER: 18.0}
    rows = speedups({way: runner(way, ms) for way, ms in ways.items()}, "int8", 20)
    found = {(row.built_for, row.threads): row for row in rows}
    assert found[TWO].speedup.value == pytest.approx(1.8) and found[TWO].speedup.low == pytest.approx(1.8)
    assert found[FEWER].speedup.value == found[ONE].speedup.value == 1
    assert found[TWO].cpu_ms == 20


def test_two_processes_at_once_are_compared_with_each_alone() -> None:
    """The second CPU is twice as fast as the first one; both take a quarter longer beside each other."""
    running: dict[int, list[bool]] = {}

    def start(which: int) -> Callable[[], tuple[float, float]]:
        for others in running.values():
            others[0] = True
        running[which] = beside = [bool(running)]

        def wait() -> tuple[float, float]:
            del running[which]
            return (10.0, 5.0)[which] * (1.25 if beside[0] else 1.0), 4.0

        return wait

    found = at_once(start, "int8", 9)
    assert found.speedup.value == pytest.approx(1.6) and found.wall_ms == (12.5 + 6.25) / 2 and found.cpu_ms == 4.0


@pytest.mark.parametrize(
    ("flags", "kind", "expected"),
    [
        ({"avx2", "avx512_vnni", "avx_vnni"}, "-vnni", ("x86-64-avx512vnni-tvm", "tvm-threads-vnni")),
        ({"avx2", "avx_vnni"}, "-vnni", ("x86-64-avxvnni-tvm", "tvm-threads-vnni")),
        ({"avx2", "avx512f"}, "", ("x86-64-v3-tvm", "tvm-threads")),
        ({"avx2"}, "-128bit", ("x86-64-v3-tvm", "tvm-threads-128bit")),
    ],
)
def test_every_class_of_cpus_has_a_report_of_its_own(flags: set[str], kind: str, expected: tuple[str, str]) -> None:
    assert of_class(frozenset(flags), kind) == expected


def test_the_tables_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_threads, "PAUSE_S", 0)
    machine = environment(
        snapshot(), snapshot(), runtime="tvm", runtime_version="tvm 1", inference_precision="f32", threads=2
    )
    rows = speedups({ONE: lambda _: (18.0, 18.0), TWO: lambda _: (10.0, 20.0)}, "int8", 12)
    kernel = Kernels(kind="int8", kernel="fc1", calls=12, one_ms=5.6, two_ms=2.9)
    report = Report(
        command="c",
        machine=machine,
        target="t",
        rounds=12,
        rows=rows,
        kernels=(kernel,),
        arenas={"int8": (10**6, 2 * 10**6)},
        apart=(Apart(kind="int8", wall_ms=20.0, cpu_ms=19.5, speedup=median_interval([1.8] * 9)),),
    )
    lines = render(report).splitlines()
    assert "| int8 | 1 | 1 | 18.00 | 18.00 | 1.000 (1.000 to 1.000) | 1.000 |" in lines
    assert "| int8 | 2 | 2 | 10.00 | 20.00 | 1.800 (1.800 to 1.800) | 2.000 |" in lines
    pair = "| int8 | 1 | two processes, nothing shared | 20.00 | 19.50 each | 1.800 (1.800 to 1.800) | 2.000 |"
    assert pair in lines
    assert "| int8 | fc1 | 12 | 5.600 | 2.900 | 1.93 | 0.100 |" in lines
    assert lines[-1].startswith("All kernels together: int8 5.60 ms on one thread, 2.90 ms on two.")
