"""What a second thread makes of TVM's kernels: deit_tiny built for one thread and for two, run by the C++ runner.

    EDGEVIT_DATA=DIR python -m benchmarks.tvm_threads --work out/backends -o reports/reference

Wall time, so the machine must be quiet: on a busy one threads wait for each other's CPUs. Every round runs each build
once on the same image, in an order drawn anew; a speed-up is the median of the quotients within rounds. Two processes
that share nothing, each on a CPU of its own, tell what there is to be had at best. --work is that of
benchmarks/backends.py. The report is called tvm-threads, on a CPU with VNNI tvm-threads-vnni, on one that halves its
vectors tvm-threads-128bit: figures of one class of CPUs say nothing of another.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from benchmarks.backends import Case, build, cases
from benchmarks.cpu_class import suffix
from benchmarks.timing import WARMUP_ROUNDS, Ratio, median_interval
from benchmarks.tvm_figures import TARGET as AVX2
from edgevit.backends import tvm
from edgevit.backends.tvm.run.process import ProcessRunner
from edgevit.measure.environment import cpu_flags, environment, snapshot
from edgevit.schema.measurement import Environment
from edgevit.schema.target import Target, load_target
from edgevit.util.strict_json import dumps, write_atomic
from edgevit.verify.parity import ALL_OPEN

ASKED = 1.85
# The target of this machine's class, and what the report is called.
TARGETS = {"avx512_vnni": "x86-64-avx512vnni-tvm", "avx_vnni": "x86-64-avxvnni-tvm"}
NAME = "tvm-threads"
IMAGES, TRACED = 8, 24
# Of two processes at once: how often, and runs of each that time.
TURNS, RUNS = 9, 60
# Between runs, until threads that found nothing to do any more are asleep: else they would be the next one's.
PAUSE_S = 0.01
# (threads that it was built for, threads that it runs on)
ONE, TWO, FEWER = (1, 1), (2, 2), (2, 1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Wall and CPU time of one way to run a model, and how many times as fast as the build for one thread it is."""

    kind: str
    built_for: int
    threads: int
    wall_ms: float
    cpu_ms: float
    speedup: Ratio


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """All calls of one kind of kernel in a run, on one thread and on two: median over runs."""

    kind: str
    kernel: str
    calls: int
    one_ms: float
    two_ms: float


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Two processes of one thread that share nothing, at once: times of a run, and how many more runs there are."""

    kind: str
    wall_ms: float
    cpu_ms: float
    speedup: Ratio


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything tvm-threads.md is made of; arenas in bytes, by kind, for one thread and for two."""

    command: str
    machine: Environment
    target: str
    rounds: int
    rows: tuple[Row, ...]
    kernels: tuple[Kernels, ...]
    arenas: dict[str, tuple[int, int]]
    apart: tuple[Apart, ...] = ()


def of_class(flags: frozenset[str], kind: str) -> tuple[str, str]:
    """Return the target of a CPU with these flags and what its report is called; `kind` is as of `cpu_class`."""
    target = next((name for flag, name in TARGETS.items() if flag in flags), None)
    return target or AVX2, f"{NAME}{kind}"


def speedups(
    runs: Mapping[tuple[int, int], Callable[[int], tuple[float, float]]], kind: str, rounds: int
) -> tuple[Row, ...]:
    """Rows of interleaved runs; each takes the number of an image and gives its wall and CPU time."""
    rng = np.random.default_rng(0)
    ways = list(runs)
    times: dict[tuple[int, int], list[tuple[float, float]]] = {way: [] for way in runs}
    for index in range(-WARMUP_ROUNDS, rounds):
        for way in (ways[i] for i in rng.permutation(len(ways))):
            time.sleep(PAUSE_S)
            found = runs[way](index % IMAGES)
            if index >= 0:
                times[way].append(found)
    base = [wall for wall, _ in times[ONE]]
    return tuple(
        Row(
            kind=kind,
            built_for=way[0],
            threads=way[1],
            wall_ms=statistics.median(wall for wall, _ in found),
            cpu_ms=statistics.median(cpu for _, cpu in found),
            speedup=median_interval([one / wall for one, (wall, _) in zip(base, found, strict=True)]),
        )
        for way, found in times.items()
    )


def by_kernel(folders: Mapping[int, Path], images: np.ndarray, kind: str) -> tuple[Kernels, ...]:
    """The time of every kind of kernel, as the virtual machine tells it."""
    spent: dict[int, dict[str, list[float]]] = {}
    calls: dict[str, int] = {}
    for threads, folder in folders.items():
        runner, spent[threads] = tvm.start(folder, trace=True), defaultdict(list)
        for index in range(TRACED):
            time.sleep(PAUSE_S)
            told, _ = runner.trace(images[index % IMAGES][None], ALL_OPEN)
            sums: dict[str, float] = defaultdict(float)
            for call in told:
                sums[call.kernel] += call.ms
            calls = {kernel: sum(call.kernel == kernel for call in told) for kernel in sums}
            for kernel, ms in sums.items():
                spent[threads][kernel].append(ms)
        runner.close()
    median = {threads: {k: statistics.median(ms) for k, ms in found.items()} for threads, found in spent.items()}
    order = sorted(calls, key=lambda kernel: -median[1][kernel])
    return tuple(Kernels(kind=kind, kernel=k, calls=calls[k], one_ms=median[1][k], two_ms=median[2][k]) for k in order)


def at_once(start: Callable[[int], Callable[[], tuple[float, float]]], kind: str, turns: int) -> Apart:
    """Two processes at once against each of them alone.

    `start` takes which of them, 0 or 1, starts it and gives what waits for the wall and CPU time of its runs.
    """
    gains, walls, cpus = [], [], []
    for _ in range(turns):
        alone = [start(which)()[0] for which in range(2)]
        begun = [start(which) for which in range(2)]
        together = [wait() for wait in begun]
        gains.append(sum(one / wall for one, (wall, _) in zip(alone, together, strict=True)))
        walls += [wall for wall, _ in together]
        cpus += [cpu for _, cpu in together]
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    return Apart(kind=kind, wall_ms=wall, cpu_ms=cpu, speedup=median_interval(gains))


def processes(folder: Path, image: np.ndarray, picture: Path) -> Callable[[int], Callable[[], tuple[float, float]]]:
    """What starts the C++ runner on the first or second CPU; `picture` is where the image can lie meanwhile."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    picture.write_bytes(b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes())

    def start(which: int) -> Callable[[], tuple[float, float]]:
        command = [folder / "runner" / "native" / "runner", folder, picture, "--json", "--runs", RUNS]
        command += ["--cpus", cpus[which]]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)

        def wait() -> tuple[float, float]:
            told = json.loads(process.communicate()[0])
            return told["wall_ms"]["median"], told["cpu_ms"]["median"]

        return wait

    return start


def measure(
    case: Case, target: Target, kind: str, rounds: int
) -> tuple[tuple[Row, ...], tuple[Kernels, ...], tuple[int, int], Apart]:
    """Rows, kernels and arenas of one model and one kind of kernels, and what two processes do."""
    folders = {threads: build(case, replace(target, threads=threads)).folder for threads in (1, 2)}
    images = case.evaluation.images
    runners = {way: tvm.start(folders[way[0]], threads=way[1]) for way in (ONE, TWO, FEWER)}

    def timed(runner: ProcessRunner) -> Callable[[int], tuple[float, float]]:
        def run(index: int) -> tuple[float, float]:
            runner.run(images[index][None], ALL_OPEN)
            return runner.told["wall_ms"]["median"], runner.told["cpu_ms"]["median"]

        return run

    rows = speedups({way: timed(runner) for way, runner in runners.items()}, kind, rounds)
    for runner in runners.values():
        runner.close()
    one, two = (tvm.memory(folders[threads]).arena for threads in (1, 2))
    with tempfile.TemporaryDirectory() as scratch:
        apart = at_once(processes(folders[1], images[0], Path(scratch) / "image.ppm"), kind, TURNS)
    return rows, by_kernel(folders, images, kind), (one, two), apart


def render(report: Report) -> str:
    """The Markdown document."""
    machine = report.machine
    lines = [
        "# TVM: two threads against one",
        "",
        f"`{report.command}` on {machine.cpu}, {machine.cores} cores ({machine.runtime_version}; load "
        f"{machine.load_average_before or 0:.1f} to {machine.load_average_after or 0:.1f}), target {report.target}, "
        f"deit_tiny, {report.rounds} rounds, {IMAGES} images.",
        "",
        "Times of the C++ runner, medians; speed-up: median of the quotients within rounds, with its 95 % interval. "
        f"Asked: two threads at least {ASKED} x one. CPU time is that of all threads, which look for work for a while "
        "before they sleep. Two processes that share nothing run an image each at once, each on a CPU of its own: "
        "their speed-up, images in the same time, is what the machine's CPUs have to give. Activations: the arena, "
        "with what every thread has of its own.",
        "",
        "| kind | built for | run on | wall, ms | CPU, ms | speed-up | arena, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report.rows:
        arena = report.arenas[row.kind][row.built_for - 1] / 1e6
        cells = (row.kind, row.built_for, row.threads, f"{row.wall_ms:.2f}", f"{row.cpu_ms:.2f}", row.speedup)
        lines.append(f"| {' | '.join(map(str, cells))} | {arena:.3f} |")
    for pair in report.apart:
        arena = 2 * report.arenas[pair.kind][0] / 1e6
        times = f"{pair.wall_ms:.2f} | {pair.cpu_ms:.2f} each | {pair.speedup}"
        lines.append(f"| {pair.kind} | 1 | two processes, nothing shared | {times} | {arena:.3f} |")
    lines += [
        "",
        f"By kernel, all calls of a run together, medians over {TRACED} runs that were told call by call:",
        "",
        "| kind | kernel | calls | one thread, ms | two, ms | speed-up | lost, ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for k in report.kernels:
        lost = k.two_ms - k.one_ms / 2
        times = f"{k.one_ms:.3f} | {k.two_ms:.3f} | {k.one_ms / k.two_ms:.2f} | {lost:.3f}"
        lines.append(f"| {k.kind} | {k.kernel} | {k.calls} | {times} |")
    return "\n".join([*lines, "", _summary(report.kernels)]) + "\n"


def _summary(kernels: Sequence[Kernels]) -> str:
    told = []
    for kind in dict.fromkeys(k.kind for k in kernels):
        one, two = (sum(getattr(k, name) for k in kernels if k.kind == kind) for name in ("one_ms", "two_ms"))
        told.append(f"{kind} {one:.2f} ms on one thread, {two:.2f} ms on two")
    return f"All kernels together: {'; '.join(told)}. Lost: what is missing to half the time of one thread."


@click.command(epilog="Example: python -m benchmarks.tvm_threads --work out/backends -o reports/reference")
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="As of backends.py.")
@click.option("--target", "name", help="Of this machine (default: that of the CPU's class).")
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(6), help="Timed rounds.")
@click.option("--calibration", default=100, show_default=True, type=click.IntRange(1), help="As of backends.py.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, name: str | None, rounds: int, calibration: int, out: Path) -> None:
    """Write tvm-threads.json and tvm-threads.md, on x86-64; with the CPU's class in their name."""
    usual, report_name = of_class(cpu_flags(), suffix())
    target = load_target(name or usual)
    rows: list[Row] = []
    kernels: list[Kernels] = []
    apart: list[Apart] = []
    arenas: dict[str, tuple[int, int]] = {}
    out.mkdir(parents=True, exist_ok=True)
    (case,) = cases(("deit_tiny",), work, calibration, IMAGES)
    before = snapshot()
    for kind, wanted in (("float", replace(target, int8=False, attention="float32")), ("int8", target)):
        found, told, arenas[kind], pair = measure(case, wanted, kind, rounds)
        rows += found
        kernels += told
        apart.append(pair)
    version = tvm.versions()["tvm"]
    asked = f"--target {target.name} --rounds {rounds} --calibration {calibration}"
    report = Report(
        command=f"python -m benchmarks.tvm_threads {asked}",
        machine=environment(
            before, snapshot(), runtime="tvm", runtime_version=f"tvm {version}", inference_precision="f32", threads=2
        ),
        target=target.name,
        rounds=rounds,
        rows=tuple(rows),
        kernels=tuple(kernels),
        arenas=arenas,
        apart=tuple(apart),
    )
    write_atomic(out / f"{report_name}.json", dumps(report))
    write_atomic(out / f"{report_name}.md", render(report))


if __name__ == "__main__":
    main()
