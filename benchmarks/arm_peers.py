"""What LiteRT's and ONNX Runtime's own builds of a dense DeiT-Ti execute on ARM processors, beside edgevit's: counted.

    edgevit device setup qemu
    python -m benchmarks.arm_peers --models out/peers/deit_tiny-300 -o reports/reference

`--models` is what benchmarks/peers.py keeps of deit_tiny in its --work, LiteRT's files too (extra `bench-litert`). The
aarch64 wheel of LiteRT is fetched by pip, and runs in the emulated device beside ONNX Runtime. What is executed depends
on shapes: edgevit's builds for ONNX Runtime have drawn weights. Figures of TVM's kernels are those of tvm-counts.json
in the same folder. `--only` and `--cpu` count some rows anew, such as those of `litert`, and keep the others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx

from benchmarks import tvm_counts
from benchmarks.arm import BOARDS, dense_blocks
from benchmarks.arm_operators import DEPTH, Fed, count, executed, plan_of
from benchmarks.kept import read_rows
from benchmarks.peer_builds import EXPORTED, INPUT
from edgevit.backends.onnxruntime.arm import ARCH
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.devices.qemu import packages, userland
from edgevit.devices.qemu.emulator import Userland, last_words
from edgevit.onnx_form.assemble import assemble
from edgevit.util.atomic import scratch
from edgevit.util.strict_json import dumps, write_atomic

NAME = "arm-peers"
# Of Python 3.11, 3.12 and 3.13: pip refuses any other content.
LITERT = (
    "ai-edge-litert==2.3.0 --hash=sha256:853fc608f96da87bd5f3458465dfb9abbf18d5ae6b94eceacead407146f175ae "
    "--hash=sha256:9891611b23a87cc2ace60e4b5ee9a2ee6f0fb7f395f009470961ae6e6310e1b8 "
    "--hash=sha256:2ab71e4f5dfa65b3882634b42755f455f3e7415630d720200bd792733e15e257"
)
PLATFORMS = (*packages.PLATFORMS, "manylinux_2_27_aarch64")
# What peers.py keeps: file, whether int8.
ONNX_PEERS = {
    "ONNX Runtime, the export": (EXPORTED, False),
    "ONNX Runtime static": ("static.onnx", True),
    "ONNX Runtime dynamic": ("dynamic.onnx", True),
    "ONNX Runtime, graph built by hand": ("attention-dynamic.onnx", True),
}
LITERT_PEERS = {"LiteRT": ("litert-float.tflite", False), "LiteRT dynamic": ("litert-dynamic.tflite", True)}
OWN_ONNX = {"edgevit, ONNX Runtime": False, "edgevit, ONNX Runtime int8": True}
OWN_TVM = {"edgevit, TVM, kernels": False, "edgevit, TVM int8, kernels": True}
PARTS = ("onnxruntime", "litert")
RIVAL, OWN = "LiteRT dynamic", "edgevit, ONNX Runtime int8"
TARGETS = {"cortex-a72": "cortex-a72-tvm", "cortex-a76": "cortex-a76-tvm", "armv8.6-i8mm": "armv8.6-i8mm-tvm"}
GUEST = """
import ctypes, json, numpy
from ai_edge_litert.interpreter import Interpreter
call = ctypes.CDLL(None).syscall
for name in json.load(open("request.json")):
    interpreter = Interpreter(name, num_threads=1)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], numpy.load("image.npy"))
    interpreter.invoke()
    call(0x7ffe, 1)
    interpreter.invoke()
    call(0x7ffe, 2)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One build on one processor: instructions of one inference, and those that are dot or matrix products of bytes.

    `by` is what counted it: one of `PARTS`, or `tvm` for kernels alone, whose classes are not told apart.
    """

    cpu: str
    name: str
    by: str
    own: bool
    int8: bool
    instructions: int
    products: int | None
    versions: str


def image() -> np.ndarray:
    """Return what peers are fed, float32 `[1, 3, 224, 224]`."""
    return np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)


def onnx_models(models: Path) -> dict[str, tuple[Fed, bool, bool]]:
    """Return all that ONNX Runtime runs: the model with what it is fed, whether edgevit's own, and whether int8."""
    found: dict[str, tuple[Fed, bool, bool]] = {
        name: ((onnx.load(models / file), {INPUT: image()}), False, int8) for name, (file, int8) in ONNX_PEERS.items()
    }
    program = dense_blocks(DEPTH)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3)).astype(np.uint8)
    for name, int8 in OWN_ONNX.items():
        made = assemble(program, plan_of(program.spec) if int8 else None)
        found[name] = (fuse(made, arch=ARCH)[0], {"image": pixels}), True, int8
    return found


def count_onnx(place: Userland, models: Path, cpu: str) -> list[Row]:
    """Count the peers' ONNX models and edgevit's, each in a session of its own."""
    given = onnx_models(models)
    with scratch() as folder:
        counts = count(place, [fed for fed, _, _ in given.values()], folder, dump=True, cpu=cpu)
    versions = f"onnxruntime {place.packages['onnxruntime']}, {place.emulator_version}"
    return [
        _row(cpu, name, "onnxruntime", classes, own=own, int8=int8, versions=versions)
        for (name, (_, own, int8)), classes in zip(given.items(), counts, strict=True)
    ]


def count_litert(place: Userland, models: Path, cpu: str, wheel: Path) -> list[Row]:
    """Count LiteRT's models, run by the aarch64 wheel that lies unpacked in a folder."""
    with scratch() as folder:
        for file, _ in LITERT_PEERS.values():
            shutil.copy(models / file, folder)
        np.save(folder / "image.npy", image())
        (folder / "request.json").write_text(json.dumps([file for file, _ in LITERT_PEERS.values()]))
        counts = executed(place, GUEST, folder, cpu, [wheel])
    versions = f"{LITERT.split()[0].replace('==', ' ')}, {place.emulator_version}"
    return [
        _row(cpu, name, "litert", classes, own=False, int8=int8, versions=versions)
        for (name, (_, int8)), classes in zip(LITERT_PEERS.items(), counts, strict=True)
    ]


def _row(cpu: str, name: str, by: str, classes: dict[str, int], *, own: bool, int8: bool, versions: str) -> Row:
    return Row(
        cpu=cpu,
        name=name,
        by=by,
        own=own,
        int8=int8,
        instructions=sum(classes.values()),
        products=classes["dot"] + classes["matrix"],
        versions=versions,
    )


def tvm_rows(path: Path, cpu: str) -> list[Row]:
    """Return what TVM's kernels execute, of the counts that are there."""
    counted = {(row.target, row.weight_bits is not None): row for row in tvm_counts.read(path)}
    return [
        Row(
            cpu=cpu,
            name=name,
            by="tvm",
            own=True,
            int8=int8,
            instructions=found.instructions,
            products=None,
            versions="tvm-counts.md",
        )
        for name, int8 in OWN_TVM.items()
        if (found := counted.get((TARGETS[cpu], int8)))
    ]


def fetch_litert(python: str, folder: Path) -> Path:
    """Fetch the aarch64 wheel of LiteRT for a Python named `python3.N` and unpack it below a folder.

    Raises:
        ClickException: pip gets none, or one of other content.
    """
    asked = folder / "requirements.txt"
    asked.write_text(LITERT + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "-r", str(asked), "-d", str(folder), "--implementation=cp"]
    command += [f"--python-version={python.removeprefix('python')}", *(f"--platform={name}" for name in PLATFORMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise click.ClickException(f"pip cannot fetch LiteRT's aarch64 wheel ({last_words(done.stderr)})")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def read(path: Path) -> list[Row]:
    """Return the rows of a report; none if there is none.

    Raises:
        ClickException: it is damaged, or of another version.
    """
    return read_rows(path, Row, "run without --only and --cpu")


def render(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    versions = dict.fromkeys(part for row in rows if row.by != "tvm" for part in row.versions.split(", "))
    cpus = list(dict.fromkeys(row.cpu for row in rows))
    found = {(row.cpu, row.name): row for row in rows}
    lines = [
        "# Executed instructions on ARM: LiteRT and ONNX Runtime by their own tools, and edgevit",
        "",
        f"{', '.join(versions)}; one thread, a dense DeiT-Ti at 224 x 224, per inference, in millions: counted,",
        "never timed. Products: instructions that multiply bytes and add them up (dot, matrix), where a processor has",
        "them. LiteRT dynamic, ONNX Runtime static and dynamic: as benchmarks/peers.py builds them; by hand: a graph",
        "that no tool makes. Peers compute all tokens of the last block, edgevit's builds the one that is read. Of TVM",
        "the kernels are counted ([tvm-counts.md](tvm-counts.md)), without the Python or C++ around them.",
        "Regenerate: `python -m benchmarks.arm_peers --models out/peers/deit_tiny-300 -o reports/reference`.",
        "",
        f"| build | {' | '.join(f'{cpu} | products' for cpu in cpus)} |",
        f"| --- |{' ---: | ---: |' * len(cpus)}",
    ]
    for name, own in dict.fromkeys((row.name, row.own) for row in sorted(rows, key=lambda row: row.int8)):
        cells = [cell for cpu in cpus for cell in _cells(found.get((cpu, name)))]
        lines.append(f"| {f'**{name}**' if own else name} | {' | '.join(cells)} |")
    both = [(cpu, found[cpu, OWN], found[cpu, RIVAL]) for cpu in cpus if {(cpu, OWN), (cpu, RIVAL)} <= set(found)]
    told = ", ".join(f"{cpu} {own.instructions / rival.instructions:.2f}" for cpu, own, rival in both)
    lines += ["", f"{OWN} over {RIVAL}, asked at most 1: {told}."] if told else []
    return "\n".join(lines) + "\n"


def _cells(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    return f"{row.instructions / 1e6:.1f}", f"{row.products / 1e6:.1f}" if row.products else "-"


@click.command(epilog="Example: python -m benchmarks.arm_peers --models out/peers/deit_tiny-300 -o reports/reference")
@click.option("--models", required=True, type=click.Path(path_type=Path, file_okay=False, exists=True), help="Peers'.")
@click.option(
    "--cpu",
    "cpus",
    multiple=True,
    type=click.Choice(tuple(BOARDS)),
    default=tuple(BOARDS),
    help="Only there; others are kept.",
)
@click.option("--only", multiple=True, type=click.Choice((*PARTS, "tvm")), help="Count these; keep the other rows.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(models: Path, cpus: tuple[str, ...], only: tuple[str, ...], out: Path) -> None:
    """Count on every processor, and write arm-peers.json and arm-peers.md."""
    known = read(out / f"{NAME}.json") if only or cpus != tuple(BOARDS) else []
    place = userland.installed()
    counted = [part for part in PARTS if part in only or not only]
    rows = [row for row in known if row.cpu not in cpus]
    with scratch() as folder:
        wheel = fetch_litert(place.python, folder) if "litert" in counted else folder
        for cpu in cpus:
            click.echo(cpu, err=True)
            kept = [row for row in known if row.cpu == cpu and row.by in PARTS and row.by not in counted]
            rows += count_onnx(place, models, cpu) if "onnxruntime" in counted else []
            rows += count_litert(place, models, cpu, wheel) if "litert" in counted else []
            rows += [*kept, *tvm_rows(out / "tvm-counts.json", cpu)]
    order = {name: index for index, name in enumerate((*ONNX_PEERS, *LITERT_PEERS, *OWN_ONNX, *OWN_TVM))}
    rows.sort(key=lambda row: (tuple(BOARDS).index(row.cpu), order[row.name]))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{NAME}.json", dumps(rows))
    write_atomic(out / f"{NAME}.md", render(rows))


if __name__ == "__main__":
    main()
