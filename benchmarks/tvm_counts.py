"""What every kernel of a model executes on CPUs that are not at hand: instructions and estimated cycles, by emulation.

    python -m benchmarks.tvm_counts -o reports/reference

The kernels of a dense DeiT-Ti at 224 x 224 are compiled for a target as its builds are, in each type that it could
take, and run one by one under qemu with the counter of emulated devices; llvm-mca estimates cycles from the blocks that
ran. What is executed depends on shapes alone, so weights are random. The targets' choices of type are read off these
figures, and tests/benchmarks/test_tvm_counts.py holds the target files against them. Nothing is timed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.arm import dense_blocks
from benchmarks.kept import read_rows
from edgevit.backends import tvm
from edgevit.devices.qemu import packages
from edgevit.devices.qemu.estimate import cycles_of, find_mca, missing, read_blocks
from edgevit.program.program import Program
from edgevit.quantize.round import round_weight
from edgevit.schema.arm_cpus import ARM_CPUS, Cache, Core
from edgevit.schema.int16_sums import Products
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names
from edgevit.schema.target import Target, load_target
from edgevit.util.strict_json import dumps, write_atomic

HERE = Path(__file__).parent
MODEL, BLOCKS = "dense DeiT-Ti", 12
NAME = "tvm-counts"
# The oldest CPU that x86-64-v2 names, and the core of the boxes that have no more.
OLDEST_X86 = "Nehalem"
SILVERMONT = Core(
    triple="x86_64-linux-gnu",
    model="silvermont",
    part="Atom since 2013",
    caches=(Cache(bytes=24 << 10, ways=6, cycles=3), Cache(bytes=1 << 20, ways=16, cycles=14)),
    memory_cycles=150,
    source="Intel 64 and IA-32 Architectures Optimization Reference Manual, Silvermont",
)
SKYLAKE = Core(
    triple="x86_64-linux-gnu",
    model="skylake",
    part="Core of 2015 to 2020, with AVX2",
    caches=(Cache(bytes=32 << 10, ways=8, cycles=4), Cache(bytes=256 << 10, ways=4, cycles=12)),
    memory_cycles=200,
    source="Intel 64 and IA-32 Architectures Optimization Reference Manual, Skylake Client",
)
# What emulates the code of a target, and the core whose cycles are estimated.
X86: dict[str, tuple[str, Core]] = {
    "x86-64-v2-tvm": (OLDEST_X86, SILVERMONT),
    "x86-64-v3-tvm": ("Haswell", SKYLAKE),
}
# Target, and the types that it could take: bits of int8 weights, or None for float.
CASES: tuple[tuple[str, tuple[int | None, ...]], ...] = (
    ("x86-64-v2-tvm", (7, 8, None)),
    ("x86-64-v3-tvm", (7, 8, None)),
    ("cortex-a53-tvm", (8, None)),
    ("cortex-a72-tvm", (8, None)),
    ("cortex-a76-tvm", (8, None)),
    ("armv8.6-i8mm-tvm", (8, None)),
)


@dataclass(frozen=True, kw_only=True)
class KernelCount:
    """All calls of the kernels of one name in one inference: instructions, and cycles as `estimate` bounds them."""

    name: str
    calls: int
    instructions: int
    lower_cycles: float
    waiting_cycles: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One target in one type; `taken` by the target file, `weights_bytes` as they are mapped."""

    target: str
    weight_bits: int | None
    taken: bool
    cpu: str
    core: str
    weights_bytes: int
    kernels: tuple[KernelCount, ...]

    @property
    def instructions(self) -> int:
        return sum(kernel.instructions for kernel in self.kernels)

    @property
    def lower_cycles(self) -> float:
        return sum(kernel.lower_cycles for kernel in self.kernels)

    @property
    def waiting_cycles(self) -> float:
        return sum(kernel.waiting_cycles for kernel in self.kernels)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """Kernels by the name of their symbol, with what they are called in the model and how often."""

    functions: dict[str, Any]
    names: dict[str, str]
    calls: Counter[str]
    weights_bytes: int


def choices(rows: Sequence[Row]) -> dict[str, int | None]:
    """Return the type per target that the counts speak for.

    With int8 weights the model is a quarter as large, so it is taken where neither bound of cycles is above float's,
    and of two widths of weights the one that executes fewer instructions.
    """
    found: dict[str, int | None] = {}
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        plain = next(row for row in own if row.weight_bits is None)
        good = [
            row
            for row in own
            if row.weight_bits and row.lower_cycles <= plain.lower_cycles and row.waiting_cycles <= plain.waiting_cycles
        ]
        found[target] = min(good, key=lambda row: row.instructions).weight_bits if good else None
    return found


def measure(program: Program, target: Target, weight_bits: int | None) -> Row:
    """Compile and count one target in one type."""
    isa = tvm.isa_of(target)
    products = target.int16_products if weight_bits == target.weight_bits else 2
    compiled = kernels(program, isa, weight_bits, attention=target.attention == "int8", products=products)
    arm = target.arch == "aarch64"
    cpu = ARM_CPUS.get(target.cpu or "", ARM_CPUS["armv8.6-i8mm"]) if arm else None
    name, core = (cpu.name, cpu.core) if cpu else X86[target.name]
    with tempfile.TemporaryDirectory() as folder:
        counts = run(compiled, isa, target.arch, cpu.qemu if cpu else name, core, Path(folder))
    return Row(
        target=target.name,
        weight_bits=weight_bits,
        taken=weight_bits == (target.weight_bits if target.int8 else None),
        cpu=name,
        core=core.model,
        weights_bytes=compiled.weights_bytes,
        kernels=counts,
    )


def stages_of(
    program: Program, isa: Any, weight_bits: Any, *, attention: bool, products: Products = 2
) -> tuple[list[Any], int]:
    """Return the stages of a Program and the size of their arena; a plan's numbers do not change what they execute.

    But weights do where four products are added in 16 bits: they are rounded so that it is exact.
    """
    from edgevit.backends.tvm.codegen.schedules import default_tile
    from edgevit.backends.tvm.compile.emit import chain
    from edgevit.backends.tvm.parts.stages import Stages

    plan = None
    if weight_bits:
        entries = (LinearPlan(name=name, int8=True, scale=0.02, zero_point=100) for name in linear_names(program.spec))
        attentions = attention_names(program.spec) if attention else ()
        plan = QuantPlan(
            linears=tuple(entries), weight_bits=weight_bits, attentions=attentions, int16_products=products
        )
        if products > 2:
            program = _rounded(program, plan)
    stages = Stages(program, isa, default_tile, plan)
    return [stage for step in chain(stages) for stage in step.stages], stages.arena.size


def _rounded(program: Program, plan: QuantPlan) -> Program:
    """Return a Program with the weights of its Linears rounded as a build does it, but for the patch stem's."""
    names = [f"{entry.name}.weight" for entry in plan.linears if entry.name != "stem"]
    given = {name: program.weights[name] for name in names}
    return program.with_weights(
        {
            name: round_weight(weight, np.eye(len(weight)), plan.weight_bits, products=plan.int16_products)
            for name, weight in given.items()
        }
    )


def kernels(program: Program, isa: Any, weight_bits: Any, *, attention: bool, products: Products = 2) -> Compiled:
    """Return the kernels of a Program."""
    all_stages, arena = stages_of(program, isa, weight_bits, attention=attention, products=products)
    symbols: dict[tuple[Any, ...], str] = {}
    functions, names, calls = {}, {}, Counter[str]()
    for kernel in (kernel for stage in all_stages for kernel in stage.kernels):
        key = (kernel.build, kernel.arguments)
        if key not in symbols:
            symbols[key] = symbol = f"{kernel.name}_{len(symbols)}"
            function = kernel.build(isa, arena, *kernel.arguments)
            functions[symbol], names[symbol] = function.with_attr("global_symbol", symbol), kernel.name
        calls[symbols[key]] += 1
    weights = sum(stage.weights.nbytes for stage in all_stages)
    return Compiled(functions=functions, names=names, calls=calls, weights_bytes=weights)


def run(compiled: Compiled, isa: Any, arch: str, qemu_cpu: str, core: Core, folder: Path) -> tuple[KernelCount, ...]:
    """Run every kernel once in the emulator; folder is a scratch one."""
    from edgevit.backends.tvm.compile.passes import compile_kernels

    mca = find_mca()
    if mca is None:
        raise click.ClickException(missing())
    lines = (f"KERNEL({symbol}, {_parameters(function)})" for symbol, function in compiled.functions.items())
    (folder / "kernels.h").write_text("\n".join(lines) + "\n", encoding="ascii")
    made = compile_kernels(compiled.functions, isa.target)
    made.mod.write_to_file(str(folder / "kernels.o"))
    shutil.copy(HERE / "tvm_counts.c", folder)
    plugin = folder / "count.so"
    native = "cc" if arch == "x86_64" else f"{arch}-linux-gnu-gcc"
    _call(["cc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(packages.HERE / "count.c")], folder)
    _call([native, "-O1", "-static", "-o", "kernels", "tvm_counts.c", "kernels.o", "-lm"], folder)
    _call([f"qemu-{arch}", "-cpu", qemu_cpu, "-plugin", f"{plugin},out=counts,blocks=blocks", "./kernels"], folder)
    blocks = read_blocks(folder / "blocks")
    cycles, _ = cycles_of(mca, core, blocks)
    sums: dict[str, KernelCount] = {}
    for symbol, executed, told in zip(compiled.functions, blocks, cycles, strict=True):
        name, calls = compiled.names[symbol], compiled.calls[symbol]
        before = sums.get(name, KernelCount(name=name, calls=0, instructions=0, lower_cycles=0.0, waiting_cycles=0.0))
        sums[name] = KernelCount(
            name=name,
            calls=before.calls + calls,
            instructions=before.instructions + calls * int(sum(b.runs * b.instructions for b in executed)),
            lower_cycles=before.lower_cycles + calls * told.busy,
            waiting_cycles=before.waiting_cycles + calls * told.alone,
        )
    return tuple(sums.values())


def read(path: Path) -> list[Row]:
    """Return the rows of a report; none if there is none.

    Raises:
        click.ClickException: it is damaged, or of another version.
    """
    return read_rows(path, Row, "count all anew, without --target")


def _parameters(function: Any) -> str:
    """Return C that makes the arguments of a kernel."""
    codes = {"uint8": "UINT8", "float32": "FLOAT32"}
    made = []
    for given in function.params:
        extents = [int(extent) for extent in given.shape]
        shape = ", ".join(map(str, (extents + [1, 1, 1, 1])[:4]))
        made.append(f"made({codes[str(given.dtype)]}, {len(extents)}, {shape})")
    return ", ".join(made)


def _call(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True)
    except FileNotFoundError:
        raise click.ClickException(
            f"{command[0]} is missing; needs a C compiler, g++-aarch64-linux-gnu, qemu-user with plugins"
        ) from None


def render(rows: Sequence[Row]) -> str:
    """The tables as Markdown."""
    lines = [
        "# TVM: what kernels execute on CPUs that are not at hand",
        "",
        f"{MODEL}, one inference, one thread, in millions; qemu counts, llvm-mca bounds cycles: nothing is timed.",
        "Regenerate: `python -m benchmarks.tvm_counts -o reports/reference`. Lower bound: units of the core are busy,",
        "every load finds its data in the first cache. Waited: results of each block of code are waited for, which is",
        "what an in-order core does.",
        "",
        "| target | emulated CPU, core | type | weights, MB | instructions | lower bound, cycles | waited, cycles |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kind = f"{_kind(row)}{', what the target takes' if row.taken else ''}"
        figures = (row.weights_bytes, row.instructions, row.lower_cycles, row.waiting_cycles)
        cells = (row.target, f"{row.cpu}, {row.core}", kind, *(f"{value / 1e6:.1f}" for value in figures))
        lines.append(f"| {' | '.join(cells)} |")
    names = list(dict.fromkeys(kernel.name for row in rows for kernel in row.kernels))
    shown = [name for name in names if any(_of(row, name) >= 50_000 for row in rows)]
    lines += [
        "",
        "Instructions by kernel, in millions:",
        "",
        f"| target | type | {' | '.join(shown)} | rest |",
        f"| --- | --- |{' --- |' * (len(shown) + 1)}",
    ]
    for row in rows:
        told = [_of(row, name) for name in shown]
        cells = (row.target, _kind(row), *(f"{value / 1e6:.2f}" for value in (*told, row.instructions - sum(told))))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of(row: Row, name: str) -> int:
    return sum(kernel.instructions for kernel in row.kernels if kernel.name == name)


def _kind(row: Row) -> str:
    return f"int8, {row.weight_bits}-bit weights" if row.weight_bits else "float"


@click.command(epilog="Example: python -m benchmarks.tvm_counts -o reports/reference")
@click.option(
    "--target",
    "only",
    multiple=True,
    type=click.Choice([name for name, _ in CASES]),
    help="Only these; the report keeps others.",
)
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(only: tuple[str, ...], out: Path) -> None:
    """Count for every target, and write tvm-counts.json and tvm-counts.md."""
    out.mkdir(parents=True, exist_ok=True)
    program, rows = dense_blocks(BLOCKS), []
    kept = {(row.target, row.weight_bits): row for row in read(out / f"{NAME}.json")} if only else {}
    for name, kinds in CASES:
        for weight_bits in kinds:
            if only and name not in only:
                rows += [kept[name, weight_bits]] if (name, weight_bits) in kept else []
                continue
            target = load_target(name)
            click.echo(f"{name}, {weight_bits or 'float'}", err=True)
            rows.append(measure(program, target, weight_bits))
    write_atomic(out / f"{NAME}.json", dumps(rows))
    write_atomic(out / f"{NAME}.md", render(rows))


if __name__ == "__main__":
    main()
