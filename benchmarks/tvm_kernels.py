"""Where the time of a dense int8 DeiT-Ti goes on this core, by kernel, and how near its products come to the peak.

    python -m benchmarks.tvm_kernels --target x86-64-avx512vnni-tvm -o reports/reference

Every kernel of the model runs on values drawn once, interleaved with the loop that measures the core's peak
(benchmarks/tvm_figures.py): process CPU time, so that other load matters little, but what shares a core's caches does.
So do the fused ones and what they replace (benchmarks/tvm_fused.py).
What is executed depends on shapes alone, so weights are random.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.arm import dense_blocks
from benchmarks.cpu_class import suffix
from benchmarks.tvm_counts import BLOCKS, MODEL, Compiled, kernels, stages_of
from benchmarks.tvm_figures import peak_loop
from benchmarks.tvm_fused import Fused, brought, pairs
from benchmarks.tvm_fused import render as render_fused
from edgevit.backends import tvm
from edgevit.measure.environment import environment, snapshot
from edgevit.program.macs import head_macs, rows_in, rows_out, stem_macs
from edgevit.program.spec import ProgramSpec
from edgevit.schema.measurement import Environment
from edgevit.schema.target import load_target
from edgevit.util.strict_json import dumps, write_atomic

NAME = "tvm-kernels"
WARM_UP = 2
CALLS = 4  # at once, so that the clock's own steps do not matter


@dataclass(frozen=True, kw_only=True)
class Spent:
    """All calls of the kernels of one name in one inference; `macs` are those that the model asks for."""

    kernel: str
    calls: int
    ms: float
    macs: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything tvm-kernels.md is made of; the peak is multiply-adds per second."""

    command: str
    machine: Environment
    target: str
    flags: tuple[str, ...]
    rounds: int
    peak: float
    spent: tuple[Spent, ...]
    fused: tuple[Fused, ...] = ()


def times(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of a call of each, medians over rounds in which each runs in turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-WARM_UP, rounds):
        for name, run in runs.items():
            begin = time.process_time_ns()
            for _ in range(CALLS):
                run()
            if index >= 0:
                found[name].append((time.process_time_ns() - begin) / CALLS / 1e6)
    return {name: float(np.median(own)) for name, own in found.items()}


def callable_kernels(functions: Mapping[str, Any], isa: Any) -> dict[str, Callable[[], object]]:
    """Every kernel by its symbol, with memory of its own."""
    import tvm_ffi

    from edgevit.backends.tvm.compile.passes import compile_kernels
    from edgevit.backends.tvm.run.runner import aligned

    made, draw = compile_kernels(dict(functions), isa.target), np.random.default_rng(0)

    def given(parameter: Any) -> Any:
        shape, kind = tuple(int(extent) for extent in parameter.shape), np.dtype(str(parameter.dtype))
        values = aligned(shape, kind)
        values[...] = draw.standard_normal(shape) if kind == np.float32 else draw.integers(0, 256, shape)
        return tvm_ffi.from_dlpack(values)

    def call(symbol: str, function: Any) -> Callable[[], object]:
        run, arguments = made[symbol], [given(parameter) for parameter in function.params]
        return lambda: run(*arguments)

    return {symbol: call(symbol, function) for symbol, function in functions.items()}


def macs_of(spec: ProgramSpec) -> Counter[str]:
    """Multiply-adds of a dense model by the name of the kernel that does them."""
    found = Counter(stem=stem_macs(spec), head=head_macs(spec))
    for branch, rows, read in zip(spec.branches, rows_out(spec), rows_in(spec), strict=True):
        linear = spec.dim * branch.width
        if branch.kind == "ffn":
            found.update(fc1=rows * linear, fc2=rows * linear)
            continue
        projections = {"qkv": 3 * rows * linear} if rows == read else {"q": rows * linear, "kv": 2 * read * linear}
        found.update(projections, proj=rows * linear, attention=2 * rows * read * branch.width)
    return found


def by_name(compiled: Compiled, told: Mapping[str, float], macs: Mapping[str, int]) -> tuple[Spent, ...]:
    """What one inference spends, from the time of one call of every symbol."""
    symbols: dict[str, list[str]] = {}
    for symbol, kernel in compiled.names.items():
        symbols.setdefault(kernel, []).append(symbol)
    return tuple(
        Spent(
            kernel=kernel,
            calls=sum(compiled.calls[symbol] for symbol in own),
            ms=sum(told[symbol] * compiled.calls[symbol] for symbol in own),
            macs=macs.get(kernel, 0),
        )
        for kernel, own in symbols.items()
    )


def render(report: Report) -> str:
    """The Markdown document."""
    machine, total = report.machine, sum(row.ms for row in report.spent)
    lines = [
        "# TVM: where the time of a dense int8 model goes",
        "",
        f"`{report.command}` on {machine.cpu} ({machine.runtime_version}; load {machine.load_average_before or 0:.1f} "
        f"to {machine.load_average_after or 0:.1f}), {MODEL}, one thread, {report.rounds} rounds; instruction set: "
        f"{', '.join(report.flags)}.",
        "",
        "CPU time of every kernel, medians, interleaved with the loop over registers alone that reaches the core's "
        f"peak: {report.peak / 1e9:.0f} G multiply-adds/s. Share of peak: the time that a kernel's multiply-adds would "
        "take at the peak, in units of its own.",
        "",
        "| kernel | calls | ms | share of time | multiply-adds, M | share of peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = sorted(report.spent, key=lambda row: -row.ms)
    whole = Spent(kernel="all", calls=sum(r.calls for r in rows), ms=total, macs=sum(r.macs for r in rows))
    for row in (*rows, whole):
        of_peak = f"{1e3 * row.macs / report.peak / row.ms:.2f}" if row.macs else "-"
        part = f"{row.ms / total:.1%}"
        lines.append(f"| {row.kernel} | {row.calls} | {row.ms:.3f} | {part} | {row.macs / 1e6:.1f} | {of_peak} |")
    if report.fused:
        lines += ["", *render_fused(report.fused, total)]
    return "\n".join(lines) + "\n"


def report_name(kind: str) -> str:
    """Return what the report of a class of CPUs is called; see `cpu_class`."""
    return NAME if kind == "-vnni" else f"{NAME}{kind or '-avx2'}"


@click.command(epilog="Example: python -m benchmarks.tvm_kernels --target x86-64-avx512vnni-tvm")
@click.option("--target", "name", default="x86-64-avx512vnni-tvm", show_default=True, help="Of this machine.")
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(3), help="Timed rounds.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(name: str, rounds: int, out: Path) -> None:
    """Write tvm-kernels.json and tvm-kernels.md; on a CPU without VNNI its class is in their name."""
    from edgevit.backends.tvm.codegen.dots import dot

    before, target = snapshot(), load_target(name)
    if not target.int8:
        raise click.BadParameter(f"{name} computes in float; name a target with int8")
    isa, program = tvm.isa_of(target), dense_blocks(BLOCKS)
    asked: dict[str, Any] = {"attention": target.attention == "int8", "products": target.int16_products}
    compiled = kernels(program, isa, target.weight_bits, **asked)
    peak, most = peak_loop(isa, dot(isa, target.weight_bits).joining(target.int16_products))
    stages, arena = stages_of(program, isa, target.weight_bits, **asked)
    fused = tuple(pairs([kernel for stage in stages for kernel in stage.kernels], arena, isa.lanes))
    both = {
        symbol: build(isa, pair.arena).with_attr("global_symbol", symbol)
        for pair in fused
        for symbol, build in pair.functions.items()
    }
    told = times({**callable_kernels({**compiled.functions, **both}, isa), "peak": peak}, rounds)
    spent = by_name(compiled, told, macs_of(program.spec))
    machine = environment(
        before,
        snapshot(),
        runtime="tvm",
        runtime_version=", ".join(f"{k} {v}" for k, v in tvm.versions().items()),
        inference_precision=target.inference_precision,
        threads=1,
    )
    report = Report(
        command=f"python -m benchmarks.tvm_kernels --target {name} --rounds {rounds}",
        machine=machine,
        target=name,
        flags=isa.flags,
        rounds=rounds,
        peak=most / told["peak"] * 1e3,
        spent=spent,
        fused=brought(fused, told),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{report_name(suffix())}.json", dumps(report))
    write_atomic(out / f"{report_name(suffix())}.md", render(report))
    click.echo(render(report))


if __name__ == "__main__":
    main()
