"""What benchmarks/backends.py measured, as data and as a markdown document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.timing import Ratio
from edgevit.schema.claims import Fraction
from edgevit.schema.measurement import Environment

NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tvm": "TVM"}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes: the bound, and the largest peak of what it bounds (None: cannot be measured apart).

    `python_bytes`: by how much a fresh Python process grew from its imports to its peak. `runner_bytes`: all that the
    process of the bundle's own C++ runner ever held, shared libraries and mapped weights included.
    """

    bound_bytes: int
    measured_bytes: int | None
    python_bytes: int | None
    runner_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class PathTime:
    """CPU time of one thread on a path, and its ratio to ONNX Runtime's float build on the same path."""

    path: str
    cpu_median_ms: float
    to_base: Ratio


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime.

    Attributes:
        model: which.
        generated: its weights are random, so that it has no accuracy.
        backend: the runtime.
        target: what it was built for; float is the same target with nothing quantized.
        int8: whether its Linears are.
        attentions: branches whose attention is int8 too.
        top1: on the labelled images.
        agreement: how often it names the class that ONNX Runtime's float build names.
        paths: times, those of closed gates only where there are gates.
        memory: bound and measured.
        model_bytes: files that the runtime loads.
        program_bytes: of the C++ program that loads them and its runtime's libraries, where the bundle holds them.
        compile_cpu_s: CPU time from the Program and its plan to files.
    """

    model: str
    generated: bool
    backend: str
    target: str
    int8: bool
    attentions: int
    top1: Fraction | None
    agreement: Fraction
    paths: tuple[PathTime, ...]
    memory: Memory
    model_bytes: int
    program_bytes: int
    compile_cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything backends.md is made of."""

    command: str
    machine: Environment
    rounds: int
    images: int
    calibration: int
    rows: tuple[Row, ...]


def table(report: Report) -> str:
    """The Markdown document."""
    machine = report.machine
    lines = [
        "# ONNX Runtime, OpenVINO and TVM side by side",
        "",
        f"`{report.command}` on {machine.cpu} ({machine.system}; {machine.runtime_version}; load {_load(machine)}).",
        "",
        f"Times are CPU time of one thread: medians of {report.rounds} rounds in which every build of a model ran, "
        "on real images. Ratios are to ONNX Runtime's float build on that path, paired within the round, with their "
        f"95 % interval. Top-1 is on {report.images} images of ImageNet's validation set, int8 ranges are from "
        f"{report.calibration} others. Float and int8 of a runtime are the same target with and without quantization.",
        "",
        "Int8 is what each target takes on a CPU without VNNI where this one has none: 7-bit weights with ONNX Runtime "
        "and TVM; OpenVINO's 8-bit build is computed in float there.",
    ]
    for model in dict.fromkeys(row.model for row in report.rows):
        lines += _section([row for row in report.rows if row.model == model])
    lines += [
        "",
        "Bound: of the runtime's arena (ONNX Runtime, weights included), of the graph's tensors and weights (OpenVINO, "
        "which holds more and gives no figure of its own), of what a run touches (TVM; its weights are pages of a "
        "mapped file). Measured: the largest peak of just that, over all paths. Python: by how much a fresh process "
        "with numpy and the runtime grew from its imports to its peak. C++: all that the process of the bundle's "
        "own runner ever held. Size: files of the model, and in brackets the C++ program with its runtime's libraries. "
        "Compile: CPU time from the Program and its plan to these files.",
    ]
    return "\n".join(lines) + "\n"


def _section(rows: Sequence[Row]) -> list[str]:
    paths = [path.path for path in rows[0].paths]
    title = f"{rows[0].model}{' (generated weights: no accuracy)' if rows[0].generated else ''}"
    lines = ["", f"## {title}", ""]
    lines += [
        f"| build | top-1 | agrees with float | {' | '.join(f'{path}, ms | ratio' for path in paths)} |",
        f"| --- | --- | --- | {' | '.join('--- | ---' for _ in paths)} |",
    ]
    for row in rows:
        times = " | ".join(f"{path.cpu_median_ms:.2f} | {path.to_base}" for path in row.paths)
        lines.append(f"| {_name(row)} | {_top1(row)} | {row.agreement.value:.1%} | {times} |")
    lines += [
        "",
        "| build | bound, MB | measured, MB | Python grew, MB | C++ process, MB | size, MB | compile, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        m = row.memory
        cells = (m.bound_bytes, m.measured_bytes, m.python_bytes, m.runner_bytes)
        size = _mb(row.model_bytes) + (f" (+ {_mb(row.program_bytes)})" if row.program_bytes else "")
        lines.append(f"| {_name(row)} | {' | '.join(map(_mb, cells))} | {size} | {row.compile_cpu_s:.1f} |")
    return lines


def _name(row: Row) -> str:
    return f"{NAMES[row.backend]} {'int8' if row.int8 else 'float'}{', attention too' if row.attentions else ''}"


def _top1(row: Row) -> str:
    return "-" if row.top1 is None else f"{row.top1.value:.1%} ({row.top1.low:.1%} to {row.top1.high:.1%})"


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.2f}"


def _load(machine: Environment) -> str:
    loads = (machine.load_average_before, machine.load_average_after)
    return " to ".join("unknown" if load is None else f"{load:.1f}" for load in loads)
