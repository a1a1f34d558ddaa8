"""How far the estimate of cycles is off: the same method on this x86-64 machine, against what it really takes.

    python -m benchmarks.estimate_error --work out/arm -o reports/reference

Bundles that benchmarks/arm.py built run under qemu-x86_64 with the counter that counts on emulated ARM processors;
llvm-mca and the modelled caches give the range of cycles. The same runs natively, alternating with a chain of dependent
multiplications whose cycles are known, which tells the clock, give the cycles it takes.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.kept import read_rows
from edgevit.bundle.read import open_bundle
from edgevit.devices.qemu import guest_program, packages
from edgevit.devices.qemu.estimate import (
    Cycles,
    cycles_of,
    find_mca,
    mean,
    missing,
    read_blocks,
)
from edgevit.devices.request import prepare_images
from edgevit.schema.arm_cpus import Cache, Core
from edgevit.util.strict_json import dumps, write_atomic

# Cache sizes and latencies: AMD's Software Optimization Guide for family 19h (56665, 57647), sections on the caches.
ZEN_3_L1, ZEN_3_L2 = Cache(bytes=32 << 10, ways=8, cycles=4), Cache(bytes=512 << 10, ways=8, cycles=12)
ZEN_4_L2 = Cache(bytes=1 << 20, ways=8, cycles=14)
CORES = {
    "Zen 3": ("znver3", (ZEN_3_L1, ZEN_3_L2, Cache(bytes=32 << 20, ways=16, cycles=46))),
    "Zen 4": ("znver4", (ZEN_3_L1, ZEN_4_L2, Cache(bytes=32 << 20, ways=16, cycles=50))),
}
MEMORY_CYCLES = 350
BUNDLES = tuple(f"dense-{backend}-{kind}" for backend in ("onnxruntime", "openvino") for kind in ("float", "int8"))
ERRORS = "arm-error.json"
RUNS, CHAIN, CYCLES_OF_IMUL = 60, 1_000_000, 3
CLOCK = """
void chain(unsigned long turns)
{
    unsigned long value = 3;
    for (; turns; turns -= 10)
        __asm__ volatile("imul %0, %0; imul %0, %0; imul %0, %0; imul %0, %0; imul %0, %0;"
                         "imul %0, %0; imul %0, %0; imul %0, %0; imul %0, %0; imul %0, %0" : "+r"(value));
}
"""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One bundle: the estimate, and the cycles it took, over `runs`, as the least and the median. `clock_mhz` too."""

    bundle: str
    core: str
    lower_cycles: float
    hits_cycles: float
    upper_cycles: float
    misses: tuple[int, ...]
    covered: float
    instructions: float
    least_cycles: float
    median_cycles: float
    runs: int
    clock_mhz: float


def core_here() -> tuple[str, Core]:
    """This machine's core: a name, and what the estimate assumes of it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    family, model = (int(re.findall(rf"^{name}\s*: (\d+)$", text, re.M)[0]) for name in ("cpu family", "model"))
    zen_4 = family == 25 and (0x10 <= model < 0x20 or 0x60 <= model < 0x80 or 0xA0 <= model < 0xB0)
    if family != 25:
        raise click.ClickException(f"no model of this processor (family {family}, model {model}); known: AMD Zen 3, 4")
    name = "Zen 4" if zen_4 else "Zen 3"
    mcpu, caches = CORES[name]
    return name, Core(
        triple="x86_64-linux-gnu",
        model=mcpu,
        part=name,
        caches=caches,
        memory_cycles=MEMORY_CYCLES,
        source="AMD Software Optimization Guides 56665 and 57647",
    )


def counted(folder: Path, core: Core, work: Path) -> tuple[Cycles, tuple[int, ...], float, float]:
    """Cycles of an inference while all loads hit, misses, covered share, instructions: under qemu-x86_64."""
    mca, qemu, compiler = find_mca(), shutil.which("qemu-x86_64"), shutil.which("cc")
    if mca is None or qemu is None or compiler is None:
        raise click.ClickException(
            f"needs a C compiler, qemu-x86_64 with plugins (apt's qemu-user), llvm-mca: {missing()}"
        )
    plugin, out, blocks = work / "count.so", work / "counts", work / "blocks"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", plugin, packages.HERE / "count.c"], check=True)
    request = {"bundle": str(folder.resolve()), "runs": [[0, 1e30]] * 3, "between": 0, "threads": 1}
    option = f"{plugin},out={out},blocks={blocks},caches={core.geometry},misses=0+1+2"
    command = [
        qemu,
        "-cpu",
        "max",
        "-plugin",
        option,
        sys.executable,
        "-m",
        "edgevit.devices.qemu.guest_program",
        json.dumps(request),
    ]
    paths = os.pathsep.join(
        [str(Path(guest_program.__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run(command, cwd=work, env=environment, check=True)
    runs = read_blocks(blocks)[1:]
    (cycles,), covered = cycles_of(mca, core, [mean(runs)])
    names, *lines = (line.split() for line in out.read_text().splitlines())
    rows = [dict(zip(names, map(int, line), strict=True)) for line in lines[1:]]
    misses = tuple(round(np.mean([row[name] for row in rows])) for name in names if name.startswith("miss"))
    total = float(np.mean([row["other"] for row in rows]))
    return cycles, misses, covered, total


def timed(folder: Path, pixels: Any, work: Path) -> tuple[float, float, float]:
    """Least and median cycles of an inference here, and the clock in MHz."""
    source, library = work / "clock.c", work / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    chain = ctypes.CDLL(str(library)).chain
    chain.argtypes = [ctypes.c_ulong]
    manifest = json.loads((folder / "manifest.json").read_text())
    run = getattr(guest_program._runner(folder), f"load_{manifest['backend']}")(manifest, 1)
    cycles, clocks = [], []
    for _ in range(RUNS):
        turn = _seconds(lambda: chain(CHAIN))
        took = _seconds(lambda: run(pixels[:1], 1e30))
        turn = min(turn, _seconds(lambda: chain(CHAIN)))
        clocks.append(CHAIN * CYCLES_OF_IMUL / turn)
        cycles.append(took * clocks[-1])
    return min(cycles), float(np.median(cycles)), float(np.median(clocks)) / 1e6


def _seconds(work: Callable[[], object]) -> float:
    """CPU time of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def check(folder: Path) -> Checked:
    """Hold the estimate of one bundle against what it takes here."""
    name, core = core_here()
    with tempfile.TemporaryDirectory() as temporary, open_bundle(folder) as bundle:
        work = Path(temporary)
        pixels, _ = prepare_images(bundle, 1)
        np.save(work / guest_program.IMAGES, pixels, allow_pickle=False)
        cycles, misses, covered, instructions = counted(bundle.folder, core, work)
        least, median, clock = timed(bundle.folder, pixels, work)
    return Checked(
        bundle=folder.name,
        core=name,
        lower_cycles=cycles.busy,
        hits_cycles=cycles.alone,
        upper_cycles=cycles.alone + core.stall_cycles(misses),
        misses=misses,
        covered=covered,
        instructions=instructions,
        least_cycles=least,
        median_cycles=median,
        runs=RUNS,
        clock_mhz=clock,
    )


def read_errors(path: Path) -> list[Checked]:
    """What `main` wrote; nothing if it was never run."""
    return read_rows(path, Checked, "run benchmarks/estimate_error.py again")


@click.command()
@click.option(
    "--work", required=True, type=click.Path(path_type=Path, exists=True), help="The folder of benchmarks/arm.py."
)
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, out: Path) -> None:
    """Estimate, time, and write arm-error.json, which benchmarks/arm.py shows in arm.md."""
    rows = []
    for name in BUNDLES:
        click.echo(name, err=True)
        rows.append(check(work / name))
        click.echo(str(rows[-1]), err=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / ERRORS, dumps(rows))


if __name__ == "__main__":
    main()
