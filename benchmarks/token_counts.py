"""Instructions that merging tokens saves on CPUs that are not at hand: kernels of Programs, by emulation.

    python -m benchmarks.token_counts DENSE MERGED... -o reports/reference

DENSE and MERGED are folders of Programs, such as `edgevit compress` and `edgevit build --macs` write; DENSE merges
nothing, and the others fixed numbers. Kernels are compiled as a build for the target has them and run one by one under
qemu (benchmarks/tvm_counts.py): what they execute depends on shapes alone, so the count is exact, and nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks import tvm_counts
from edgevit.program.macs import total_macs
from edgevit.program.program import Program, load_program
from edgevit.program.tokens import write_plan
from edgevit.schema.target import Target, load_target
from edgevit.util.strict_json import dumps, write_atomic

NAME = "token-counts"
TARGETS = ("cortex-a76-tvm",)
MERGE = "merge"  # the kernel of a point


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Program on one target: instructions of an inference, of them those of its points, and its MACs."""

    model: str
    target: str
    plan: str
    macs: int
    instructions: int
    merging: int


def count(key: str, program: Program, target: Target) -> Row:
    """Compile and count one Program in the types that the target takes."""
    found = tvm_counts.measure(program, target, target.weight_bits if target.int8 else None)
    return Row(
        model=key,
        target=target.name,
        plan=write_plan(program.spec),
        macs=total_macs(program.spec),
        instructions=found.instructions,
        merging=sum(kernel.instructions for kernel in found.kernels if kernel.name == MERGE),
    )


def table(rows: Sequence[Row]) -> str:
    """Render rows; the first of a target is the dense one."""
    lines = [
        "# Instructions of merged tokens, beside their MACs",
        "",
        "`python -m benchmarks.token_counts DENSE MERGED... -o reports/reference`",
        "",
        "All kernels of one int8 inference on an emulated CPU, one thread, counted by qemu: exact, and nothing is "
        "timed. Shares are of the dense model's. A plan 5:53,7:64 merges 53 pairs after the attention of block 5, "
        "counted from 1, and 64 after that of block 7. Points: what their own kernels execute.",
        "",
        "| Program | target | plan | MACs | instructions, M | share | points, M |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        dense = next(other for other in rows if other.target == row.target)
        cells = (row.model, row.target, row.plan or "-", f"{row.macs / dense.macs:.3f}")
        figures = (f"{row.instructions / 1e6:.1f}", f"{row.instructions / dense.instructions:.3f}")
        lines.append(f"| {' | '.join((*cells, *figures, f'{row.merging / 1e6:.2f}'))} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("programs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--target", "targets", multiple=True, default=TARGETS, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"), show_default=True)
def main(programs: tuple[Path, ...], targets: tuple[str, ...], output: Path) -> None:
    """Count the Programs, the first of which merges nothing; write token-counts.json and .md."""
    loaded = {path.name: load_program(path) for path in programs}
    first = next(iter(loaded))
    if loaded[first].spec.merges:
        plan = write_plan(loaded[first].spec)
        raise click.UsageError(f"{first} merges tokens at {plan}; the first Program has to be one that merges none")
    if following := [key for key, program in loaded.items() if program.spec.adaptive]:
        raise click.UsageError(f"{following[0]} merges another number of pairs for every image; give fixed plans")
    rows = [count(key, program, load_target(name)) for name in targets for key, program in loaded.items()]
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / f"{NAME}.json", dumps({"rows": [asdict(row) for row in rows]}))
    write_atomic(output / f"{NAME}.md", table(rows))
    click.echo(table(rows))


if __name__ == "__main__":
    main()
