"""What TVM's kernels make of this core, what compiling costs, and what the C++ runner's process holds.

    EDGEVIT_DATA=DIR python -m benchmarks.tvm_figures --work out/backends -o reports/reference

The core's peak is measured, not looked up: a loop over registers alone, of the very instructions that the products'
inner loops multiply and add with. Kernel and peak run in turn; a share is the median of the quotients of neighbours.
--work is that of benchmarks/backends.py, whose builds are used.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.backends import Candidate, Case, build, cases, cpu_s
from benchmarks.timing import Ratio, median_interval
from benchmarks.tvm_tuning import Tuning, tuning
from benchmarks.tvm_tuning import table as tuning_table
from edgevit.backends import tvm
from edgevit.backends.tvm.codegen.schedules import Isa, Product, Tile, default_tile
from edgevit.measure.environment import environment, snapshot
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import BranchSpec, ProgramSpec
from edgevit.schema.measurement import Environment
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names
from edgevit.schema.target import Target, load_target
from edgevit.util.strict_json import dumps, write_atomic
from edgevit.verify.parity import ALL_OPEN

TARGET = "x86-64-v3-tvm"
ASKED = {"float": 0.85, "int8": 0.75}
ASKED_COMPILE_S = {"deit_tiny": 30, "deit_base": 120}
ASKED_PROCESS, ASKED_LOAD = 20e6, 1.3
LOADED = {
    "weights": "weights",
    "model": "model's code",
    "runtime": "TVM's runtime and the runner",
    "system": "C and C++ libraries",
    "own": "its own",
}
TURNS = 200_000  # about as long as a product takes
OPERANDS = 4  # registers beside the sums: what is multiplied, and a product
# Of every matrix product of a ViT-Ti: qkv, proj, fc1, fc2, and the patches' one.
SHAPES = ((197, 576, 192), (197, 192, 192), (197, 768, 192), (197, 192, 768), (196, 192, 768))
NAMES = ("qkv", "proj", "fc1", "fc2", "stem")


@dataclass(frozen=True, kw_only=True)
class Share:
    """One product with its tile: multiply-adds per second, and as a share of what registers alone reach."""

    name: str
    kind: str
    shape: tuple[int, int, int]
    tile: tuple[int, int]
    giga_macs: float
    of_peak: Ratio


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """CPU time of a compilation without search, compiler and linker included."""

    model: str
    kind: str
    cpu_s: float
    weights_bytes: int


@dataclass(frozen=True, kw_only=True)
class Process:
    """A fresh process of the C++ runner on one image: all it held before it loaded the model, then, and ever.

    `loaded` is whose that is once loaded: the weights', the model's code, TVM's runtime and the runner, the system's
    libraries, and what is the process's own, in no file.
    """

    model: str
    kind: str
    weights_bytes: int
    started_bytes: int
    loaded_bytes: int
    peak_bytes: int
    loaded: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything tvm.md is made of. Peaks are giga multiply-adds per second."""

    command: str
    machine: Environment
    target: str
    rounds: int
    peaks: dict[str, float]
    shares: tuple[Share, ...]
    compiled: tuple[Compiled, ...]
    processes: tuple[Process, ...]
    tuned: tuple[Tuning, ...]


def peak_function(isa: Isa, how: Any) -> tuple[Any, int]:
    """A loop that only multiplies and adds in registers, and its multiply-adds; `how` is a Dot, or None for float."""
    from edgevit.backends.tvm.codegen.code import Code, bits, buffer, load_vector

    code, lanes = Code(), isa.lanes
    memory = buffer("memory", 3 * lanes)
    chains, count = isa.registers - OPERANDS, 1 if how is None else how.depth // how.unit
    x = code.let(load_vector(memory, 0, lanes))
    y = code.let(load_vector(memory, lanes, lanes if how is None else lanes * how.unit // 4))
    start = x if how is None else bits(f"int32x{lanes}", x)
    sums = [code.register(start) for _ in range(chains)]
    with code.loop(TURNS):
        for index, chain in enumerate(sums):
            # Each needs its own last value, so that nothing can be moved out of the loop; its neighbour's is another
            # left side, with another right side, so that none is multiplied once for both.
            value, words = chain.value, [sums[(index + i) % chains].value for i in range(count)]
            chain.set(value * x + y if how is None else how.step(value, words, [y, x][:count]))
    total = sums[0].value
    for chain in sums[1:]:
        total = total + chain.value
    code.store_vector(memory, 2 * lanes, total if how is None else bits(f"float32x{lanes}", total), lanes)
    return code.function([memory]), TURNS * chains * lanes * (1 if how is None else how.depth)


def peak_loop(isa: Isa, how: Any) -> tuple[Callable[[], object], int]:
    """The same, compiled."""
    import tvm as compiler
    import tvm_ffi

    from edgevit.backends.tvm.run.runner import aligned

    function, macs = peak_function(isa, how)
    module = compiler.IRModule({"peak": function.with_attr("global_symbol", "peak")})
    compiled = compiler.compile(module, target=compiler.target.Target(dict(isa.target)))["peak"]
    values = aligned((3 * isa.lanes,), np.float32)
    values[: isa.lanes] = 1.0
    given = tvm_ffi.from_dlpack(values)
    return lambda: compiled(given), macs


def shares(isa: Isa, kinds: dict[str, Any], rounds: int) -> tuple[dict[str, float], tuple[Share, ...]]:
    """Peaks by kind, and every product's share of its own."""
    from edgevit.backends.tvm.compile import tune

    peaks, found = {}, []
    for kind, how in kinds.items():
        peak, most = peak_loop(isa, how)
        best = 0.0
        for name, (rows, columns, depth) in zip(NAMES, SHAPES, strict=True):
            product = Product(rows=rows, columns=columns, depth=depth, dot=how)
            tile = default_tile(isa, product)
            macs = rows * columns * depth
            rates, quotients = _in_turn(tune.kernel(isa, product, tile), macs, peak, most, rounds)
            best = max(best, max(of_peak for _, of_peak in rates))
            found.append(_share(name, kind, product, tile, rates, quotients))
        peaks[kind] = best
    return peaks, tuple(found)


def _share(
    name: str,
    kind: str,
    product: Product,
    tile: Tile,
    rates: Sequence[tuple[float, float]],
    quotients: Sequence[float],
) -> Share:
    return Share(
        name=name,
        kind=kind,
        shape=(product.rows, product.columns, product.depth),
        tile=(tile.rows, tile.vectors),
        giga_macs=float(np.median([own for own, _ in rates])),
        of_peak=median_interval(quotients),
    )


def _in_turn(
    kernel: Callable[[], object], macs: int, peak: Callable[[], object], most: int, rounds: int
) -> tuple[list[tuple[float, float]], list[float]]:
    """(giga multiply-adds per second of the kernel and of the peak) per round, and their quotients."""
    rates = []
    for index in range(rounds + 2):
        rate = _rate(kernel, macs), _rate(peak, most)
        if index >= 2:  # the first ones warm up
            rates.append(rate)
    return rates, [own / highest for own, highest in rates]


def _rate(run: Callable[[], object], macs: int) -> float:
    begin = time.process_time_ns()
    run()
    return macs / max(time.process_time_ns() - begin, 1)


def generated(spec: ProgramSpec, *, dim: int, heads: int) -> Program:
    """A dense ViT of this depth and of another width, with random weights."""

    def wide(branch: BranchSpec) -> BranchSpec:
        units = heads if branch.kind == "mhsa" else 4 * dim
        return replace(branch, kept=tuple(range(units)), units_total=units)

    spec = replace(spec, dim=dim, branches=tuple(wide(branch) for branch in spec.branches))
    draw = np.random.default_rng(0)
    weights = {
        name: (draw.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1])))
        for name, shape in expected_shapes(spec).items()
    }
    return Program(spec=spec, weights=weights)


def compile_base(spec: ProgramSpec, target: Target, *, int8: bool) -> Compiled:
    """Compile a DeiT-Base of random weights; a plan's numbers do not change what there is to compile."""
    from edgevit.backends.tvm.compile import library
    from edgevit.backends.tvm.compile.emit import lower

    program = generated(spec, dim=768, heads=12)
    plan = QuantPlan(
        linears=tuple(LinearPlan(name=name, int8=True) for name in linear_names(program.spec)),
        activations=target.activations,
        weight_bits=target.weight_bits,
        attentions=attention_names(program.spec) if target.attention == "int8" else (),
    )
    begin = cpu_s()
    lowered = lower(program, tvm.isa_of(target), plan if int8 else None)
    with tempfile.TemporaryDirectory() as folder:
        library.write(lowered, Path(folder))
    weights = sum(values.nbytes for _, values in lowered.weights)
    return Compiled(model="deit_base", kind=_kind(int8), cpu_s=cpu_s() - begin, weights_bytes=weights)


def process(case: Case, candidate: Candidate) -> Process:
    """Start the build's own runner and let it run one real image with all gates open."""
    runner = tvm.start(candidate.folder)
    try:
        runner.run(case.evaluation.images[:1], ALL_OPEN)
        return Process(
            model=case.key,
            kind=_kind(candidate.target.int8),
            weights_bytes=(candidate.folder / "model.weights").stat().st_size,
            started_bytes=runner.told["started_bytes"],
            loaded_bytes=runner.told["load_peak_bytes"],
            peak_bytes=runner.told["peak_bytes"],
            loaded=runner.told["loaded"],
        )
    finally:
        runner.close()


def _kind(int8: bool) -> str:
    return "int8" if int8 else "float"


def render(report: Report) -> str:
    """The Markdown document."""
    machine = report.machine
    lines = [
        "# TVM: kernels, compiling, processes",
        "",
        f"`{report.command}` on {machine.cpu} ({machine.runtime_version}; load {machine.load_average_before or 0:.1f} "
        f"to {machine.load_average_after or 0:.1f}), target {report.target}, {report.rounds} rounds.",
        "",
        "Share: of what a loop over registers alone reaches with the same multiplying and adding instructions, run "
        "before and after; median with its 95 % interval. " + _peaks(report),
        "",
        "| product | kind | rows x columns x depth | tile | G multiply-adds/s | share of peak | asked |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for share in report.shares:
        shape, tile = (" x ".join(map(str, part)) for part in (share.shape, share.tile))
        asked = f"{ASKED[share.kind]:.0%}"
        lines.append(
            f"| {share.name} | {share.kind} | {shape} | {tile} | {share.giga_macs:.1f} | {share.of_peak} | {asked} |"
        )
    lines += [
        "",
        "CPU time to compile, linker included, without any search (deit_base: random weights):",
        "",
        "| model | kind | weights, MB | CPU, s | asked, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for made in report.compiled:
        limit = ASKED_COMPILE_S.get(made.model, "-")
        cells = (made.model, made.kind, f"{made.weights_bytes / 1e6:.1f}", f"{made.cpu_s:.1f}", str(limit))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "A fresh process of the C++ runner, all gates open: most it held until the model was loaded, and ever "
        "(resident, with shared libraries and the weights' pages). Asked: at most "
        f"{ASKED_PROCESS / 1e6:.0f} MB for the gated int8 model, and {ASKED_LOAD} x the weights while loading. What it "
        "holds before it loads any model does not grow with the model; loading adds the rest.",
        "",
        "| model | kind | weights, MB | before loading, MB | loaded, MB | of weights | added, of weights | peak, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for p in report.processes:
        held = " | ".join(f"{size / 1e6:.1f}" for size in (p.weights_bytes, p.started_bytes, p.loaded_bytes))
        whole, added = (f"{n / p.weights_bytes:.2f}" for n in (p.loaded_bytes, p.loaded_bytes - p.started_bytes))
        lines.append(f"| {p.model} | {p.kind} | {held} | {whole} | {added} | {p.peak_bytes / 1e6:.1f} |")
    lines += [
        "",
        "Whose memory it is when the model is loaded and has not run, in MB. Pages of files can be dropped and read "
        "again; the system's libraries are shared with every other program. Only what is its own is in no file.",
        "",
        f"| model | kind | {' | '.join(LOADED.values())} |",
        f"| --- | --- |{' --- |' * len(LOADED)}",
    ]
    for p in report.processes:
        parts = " | ".join(f"{p.loaded[kind] / 1e6:.2f}" for kind in LOADED)
        lines.append(f"| {p.model} | {p.kind} | {parts} |")
    return "\n".join([*lines, "", *tuning_table(report.tuned)]) + "\n"


def _peaks(report: Report) -> str:
    told = (f"{kind} {most:.1f}" for kind, most in report.peaks.items())
    return f"Highest peak, G multiply-adds/s: {', '.join(told)}."


@click.command(epilog="Example: python -m benchmarks.tvm_figures --work out/backends -o reports/reference")
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="As of backends.py.")
@click.option("--target", "name", default=TARGET, show_default=True, help="Of this machine.")
@click.option("--rounds", default=40, show_default=True, type=click.IntRange(6), help="Timed rounds.")
@click.option("--calibration", default=100, show_default=True, type=click.IntRange(1), help="As of backends.py.")
@click.option("--tune", "tune_s", default=60.0, show_default=True, help="CPU seconds to search for a model's tiles.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, name: str, rounds: int, calibration: int, tune_s: float, out: Path) -> None:
    """Write tvm.json and tvm.md, on x86-64."""
    from edgevit.backends.tvm.codegen.dots import dot

    before, target = snapshot(), load_target(name)
    if not target.int8:
        raise click.BadParameter(f"{name} computes in float; name a target with int8")
    out.mkdir(parents=True, exist_ok=True)
    isa = tvm.isa_of(target)
    how = dot(isa, target.weight_bits).joining(target.int16_products)
    peaks, found = shares(isa, {"float": None, "int8": how}, rounds)
    compiled, processes, tuned = [], [], []
    for case in cases(("deit_tiny", "shipped"), work, calibration, 1):
        for wanted in (replace(target, int8=False, attention="float32"), target):
            candidate = build(case, wanted)
            processes.append(process(case, candidate))
            weights, kind = processes[-1].weights_bytes, _kind(wanted.int8)
            cost = candidate.compile_cpu_s
            compiled.append(Compiled(model=case.key, kind=kind, cpu_s=cost, weights_bytes=weights))
        if case.key == "deit_tiny":
            tuned += [tuning(case, t, tune_s, rounds) for t in (replace(target, int8=False), target)]
            compiled += [compile_base(case.program.spec, target, int8=int8) for int8 in (False, True)]
    version = tvm.versions()["tvm"]
    report = Report(
        command=f"python -m benchmarks.tvm_figures --rounds {rounds} --calibration {calibration}",
        machine=environment(
            before, snapshot(), runtime="tvm", runtime_version=f"tvm {version}", inference_precision="f32", threads=1
        ),
        target=target.name,
        rounds=rounds,
        peaks=peaks,
        shares=found,
        compiled=tuple(compiled),
        processes=tuple(processes),
        tuned=tuple(tuned),
    )
    write_atomic(out / "tvm.json", dumps(report))
    write_atomic(out / "tvm.md", render(report))


if __name__ == "__main__":
    main()
