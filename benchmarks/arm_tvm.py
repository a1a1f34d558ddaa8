"""What TVM's builds execute on ARM processors beside ONNX Runtime's of the same model: counted under emulation.

    edgevit device setup qemu
    python -m benchmarks.arm_tvm --work out/arm-tvm -o reports/reference

The model is that of benchmarks/arm.py, two dense blocks of a ViT-Ti at 224 x 224, and ONNX Runtime's figures are from
arm.json in the same folder. TVM's code is compiled for every processor by itself, in float and in int8, whichever of
them its target takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.arm import CALIBRATION, DENSE, TIMEOUT_S, dense_blocks
from benchmarks.bundles import build_bundle
from edgevit.devices.machine import find
from edgevit.devices.profile import profile
from edgevit.images.image_set import load_images
from edgevit.schema.measurement_file import read_measurement, write_measurement
from edgevit.schema.target import Target, load_target
from edgevit.util.resources import shipped
from edgevit.util.strict_json import dumps, write_atomic

CPUS = ("cortex-a72", "cortex-a76")
INT8 = "cortex-a76-tvm"  # how a target for dense int8 quantizes
ASKED = 1.1


@dataclass(frozen=True, kw_only=True)
class Row:
    """Instructions of one inference on one processor, TVM's in all and by class, and ONNX Runtime's in all."""

    cpu: str
    int8: bool
    taken: bool
    instructions: float
    classes: dict[str, float]
    onnxruntime: float
    emulator: str

    @property
    def ratio(self) -> float:
        return self.instructions / self.onnxruntime


def build(work: Path, cpu: str, *, int8: bool) -> Path:
    """The bundle for one processor; one that is there is kept."""
    folder = work / f"{cpu}-{'int8' if int8 else 'float'}"
    if folder.exists():
        return folder
    program = dense_blocks()
    images = load_images(shipped("calibration") / "shipped.toml", program.spec.image, limit=CALIBRATION)
    return build_bundle(program, target(cpu, int8=int8), images, folder).folder


def target(cpu: str, *, int8: bool) -> Target:
    """The processor's target, in int8 or float; random weights name no class, so their accuracy says nothing."""
    own, like = load_target(f"{cpu}-tvm"), load_target(INT8)
    if int8 and not own.int8:
        own = replace(own, weight_bits=like.weight_bits, activations=like.activations, range_method=like.range_method)
    attention = own.attention if int8 else "float32"
    return replace(own, int8=int8, attention=attention, min_agreement=0.0, max_top1_drop=1.0)


def measure(work: Path, cpu: str, onnxruntime: float, *, int8: bool) -> Row:
    """Count one inference, or read what was counted before."""
    kept = work / f"{cpu}-{'int8' if int8 else 'float'}.json"
    if not kept.exists():
        found = profile(build(work, cpu, int8=int8), None, find(f"qemu:{cpu}"), runs=1, timeout_s=TIMEOUT_S)
        write_measurement(found, kept)
    emulation = read_measurement(kept).emulation
    assert emulation and emulation.instructions, "instructions were not counted"
    (real,) = [path for path in emulation.instructions if path.path == "real"]
    return Row(
        cpu=cpu,
        int8=int8,
        taken=load_target(f"{cpu}-tvm").int8 is int8,
        instructions=real.total,
        classes=real.classes,
        onnxruntime=onnxruntime,
        emulator=emulation.emulator,
    )


def counted(path: Path) -> dict[tuple[str, bool], float]:
    """ONNX Runtime's instructions of the same model by (processor, int8)."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {
        (row["cpu"], row["int8"]): row["real"]
        for row in rows
        if row["model"] == DENSE and row.get("backend", "onnxruntime") == "onnxruntime"
    }


def render(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "# Executed instructions on ARM: TVM beside ONNX Runtime",
        "",
        f"{DENSE}, per inference, in millions, one thread, {rows[0].emulator}: counted, not timed.",
        "Regenerate: `python -m benchmarks.arm_tvm --work out/arm-tvm`.",
        "",
        f"| processor | type | TVM | ONNX Runtime | ratio (asked: at most {ASKED}) | multiply-add | dot | widening |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kind = f"{'int8' if row.int8 else 'float'}{', what the target takes' if row.taken else ''}"
        classes = " | ".join(f"{row.classes.get(n, 0) / 1e6:.1f}" for n in ("multiply_add", "dot", "widening"))
        lines.append(
            f"| {row.cpu} | {kind} | {row.instructions / 1e6:.1f} | {row.onnxruntime / 1e6:.1f} | {row.ratio:.2f} | "
            f"{classes} |"
        )
    return "\n".join(lines) + "\n"


@click.command(epilog="Example: python -m benchmarks.arm_tvm --work out/arm-tvm -o reports/reference")
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="Built bundles, kept.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, out: Path) -> None:
    """Build and count on every processor, and write arm-tvm.json and arm-tvm.md."""
    work.mkdir(parents=True, exist_ok=True)
    known = counted(out / "arm.json")
    rows = []
    for cpu in CPUS:
        for int8 in (False, True):
            click.echo(f"{cpu}, {'int8' if int8 else 'float'}", err=True)
            rows.append(measure(work, cpu, known[cpu, int8], int8=int8))
    write_atomic(out / "arm-tvm.json", dumps(rows))
    write_atomic(out / "arm-tvm.md", render(rows))


if __name__ == "__main__":
    main()
