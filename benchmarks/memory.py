"""Memory bounds against what the runtimes really hold: reports/reference/memory.md and .json.

EDGEVIT_DATA=/path/to/data python benchmarks/memory.py

The folder holds the real weights of DeiT-Ti and ViT-Ti (.safetensors) and imagenet-val-1000.tar. Gates have random
weights (their values do not matter for memory, their paths do); the pruned model has an odd number of neurons and one
to three heads per branch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from edgevit.backends import onnxruntime as ort_backend
from edgevit.backends import openvino as ov_backend
from edgevit.backends.onnxruntime import memory
from edgevit.backends.onnxruntime import memory_bound as ort_bound
from edgevit.backends.onnxruntime.arena import measure_arena, run_capped
from edgevit.backends.openvino import memory_bound as ov_bound
from edgevit.backends.reference import taps
from edgevit.frontends.resolve import resolve
from edgevit.images.image_set import load_images
from edgevit.measure.fresh_process import probe_local
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import BranchSpec, GateSpec
from edgevit.quantize.observe import observe
from edgevit.quantize.plan import plan_quantization
from edgevit.schema.memory_bound import BoundDetail, CappedRun, check_bound
from edgevit.util import strict_json

MODELS = {
    "deit_tiny": ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k.safetensors"),
    "vit_tiny": ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"),
}
IMAGES = 16
DRAWN_PATTERNS = 4
ROUNDS = 5
RUNS = 20
FORCED = 1e30


@dataclass(frozen=True, kw_only=True)
class OrtRow:
    """One model on ONNX Runtime. `peaks` are bytes in use per path; `drawn` those of drawn gate patterns."""

    model: str
    variant: str
    bound: BoundDetail
    peaks: dict[str, int]
    drawn: tuple[tuple[int, int], ...]
    ratio_all_open: float
    capped: CappedRun
    capped_at_half: CappedRun
    default_peak_bytes: int
    cpu_ratio_to_default: float | None
    process_growth_bytes: int


@dataclass(frozen=True, kw_only=True)
class OpenVinoRow:
    """One model on OpenVINO: what its tensors need, and the growth of a fresh process from import to its peak."""

    model: str
    variant: str
    bound: BoundDetail
    process_growth_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/reference"))
    parser.add_argument("--default-peak", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cpu-ms", choices=["ours", "default"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.default_peak:
        print(_default_peak(arguments.default_peak) if not arguments.cpu_ms else _cpu_ms(arguments))
        return
    ort_rows: list[OrtRow] = []
    ov_rows: list[OpenVinoRow] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (model, variant, program, lowered, images) in enumerate(_candidates()):
            here = Path(folder) / str(number)
            here.mkdir()
            ort_rows.append(_ort_row(model, variant, program, lowered, images, here))
            ov_rows.append(_openvino_row(model, variant, lowered, images, here))
            print(f"{model} {variant}: {ort_rows[-1].ratio_all_open:.3f}", file=sys.stderr)
    document = {
        "command": "EDGEVIT_DATA=... python benchmarks/memory.py",
        "machine": _machine(),
        "onnxruntime": [{**strict_json.to_data(r), "bound": _short(r.bound)} for r in ort_rows],
        "openvino": [{**strict_json.to_data(r), "bound": _short(r.bound)} for r in ov_rows],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    strict_json.write_atomic(arguments.out / "memory.json", json.dumps(document, indent=2) + "\n")
    strict_json.write_atomic(arguments.out / "memory.md", _markdown(ort_rows, ov_rows))


def _candidates() -> Iterator[tuple[str, str, Program, onnx.ModelProto, np.ndarray]]:
    data = Path(os.environ["EDGEVIT_DATA"])
    for model, (name, weights) in MODELS.items():
        dense = resolve(name, weights=data / weights)
        images = load_images(data / "imagenet-val-1000.tar", dense.spec.image, limit=IMAGES).images
        shaped = {"plain": dense, "gated": _gated(dense), "pruned, gated": _gated(_pruned(dense))}
        for variant, program in shaped.items():
            runs = [taps(assemble(program, gating="open", taps=True))]
            ranges = observe(program.spec, runs, (image[None] for image in images))
            yield model, f"{variant}, float32", program, assemble(program), images
            yield model, f"{variant}, int8", program, assemble(program, plan_quantization(program, ranges)), images


def _gated(program: Program, seed: int = 0) -> Program:
    gate = GateSpec(pool="prefix", threshold=0.0)
    spec = replace(program.spec, branches=tuple(replace(b, gate=gate) for b in program.spec.branches))
    rng = np.random.default_rng(seed)
    added = {
        name: (rng.standard_normal(shape) / max(shape[0], 1) ** 0.5).astype(np.float32)
        for name, shape in expected_shapes(spec).items()
        if name not in program.weights
    }
    return program.with_weights(added, spec)


def _pruned(program: Program, seed: int = 0) -> Program:
    rng = np.random.default_rng(seed)
    branches: list[BranchSpec] = []
    changed: dict[str, np.ndarray] = {}
    for branch in program.spec.branches:
        most = branch.units if branch.kind == "mhsa" else branch.units // 2
        units = int(rng.integers(1, most + 1)) if branch.kind == "mhsa" else 2 * int(rng.integers(most // 2, most)) + 1
        kept = tuple(sorted(int(u) for u in rng.choice(branch.units, size=units, replace=False)))
        branches.append(replace(branch, kept=kept))
        changed |= _cut(program, branch, np.array(kept))
    return program.with_weights(changed, replace(program.spec, branches=tuple(branches)))


def _cut(program: Program, branch: BranchSpec, kept: np.ndarray) -> dict[str, np.ndarray]:
    name, weights = branch.name, program.weights
    if branch.kind == "ffn":
        into, out, columns, rows = f"{name}.fc1", f"{name}.fc2", kept, kept
    else:
        rows = (kept[:, None] * branch.head_dim + np.arange(branch.head_dim)).reshape(-1)
        into, out = f"{name}.qkv", f"{name}.proj"
        columns = np.concatenate([rows + part * branch.width for part in range(3)])
    return {
        f"{into}.weight": weights[f"{into}.weight"][:, columns],
        f"{into}.bias": weights[f"{into}.bias"][columns],
        f"{out}.weight": weights[f"{out}.weight"][rows],
    }


def _forced(program: Program, lowered: onnx.ModelProto, pattern: np.ndarray) -> onnx.ModelProto:
    """The same graph with every gate's limit set so that it is open where `pattern` is 1: one drawn path."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered)
    limits = {t.name: t for t in model.graph.initializer}
    for branch, opened in zip(program.spec.branches, pattern, strict=True):
        limit = -FORCED if opened else FORCED
        limits[f"{branch.name}.gate/limit"].raw_data = np.array(limit, dtype=np.float32).tobytes()
    return model


def _ort_row(
    model: str, variant: str, program: Program, lowered: onnx.ModelProto, images: np.ndarray, folder: Path
) -> OrtRow:
    image = images[:1]
    ort_backend.compile(lowered, folder, formats=("onnx",))
    file = folder / ort_backend.MODEL
    made = ort_bound.bound(file)
    measured = measure_arena(file, image)
    checked = check_bound(made, measured)
    drawn = []
    rng = np.random.default_rng(0)
    for number in range(DRAWN_PATTERNS if program.spec.gated else 0):
        pattern = rng.integers(0, 2, len(program.spec.branches))
        forced = folder / f"pattern{number}"
        forced.mkdir()
        ort_backend.compile(_forced(program, lowered, pattern), forced, formats=("onnx",))
        paths = measure_arena(forced / ort_backend.MODEL, image, {"drawn": 0.0})
        check_bound(made, paths)
        assert paths[0].open_branches == int(pattern.sum())
        drawn.append((paths[0].open_branches, paths[0].peak_bytes))
    process = probe_local(
        "edgevit.backends.onnxruntime", file, images, _efforts(program), threads=1, precision="f32"
    ).process
    assert process is not None
    return OrtRow(
        model=model,
        variant=variant,
        bound=made,
        peaks={path.name: path.peak_bytes for path in measured},
        drawn=tuple(drawn),
        ratio_all_open=checked.paths[0].ratio,
        capped=run_capped(file, made, image),
        capped_at_half=run_capped(file, made, image, cap_bytes=made.bound.arena_bytes // 2),
        default_peak_bytes=int(_self(file)),
        cpu_ratio_to_default=_cpu_ratio(file) if model == "deit_tiny" and "pruned" not in variant else None,
        process_growth_bytes=process.peak_bytes - process.imported_bytes,
    )


def _openvino_row(model: str, variant: str, lowered: onnx.ModelProto, images: np.ndarray, folder: Path) -> OpenVinoRow:
    ov_backend.compile(lowered, folder)
    file = folder / ov_backend.MODEL
    efforts = [FORCED, -FORCED, 0.0] if "gated" in variant else [0.0]
    process = probe_local("edgevit.backends.openvino", file, images, efforts, threads=1, precision="f32").process
    assert process is not None
    growth = process.peak_bytes - process.imported_bytes
    return OpenVinoRow(model=model, variant=variant, bound=ov_bound.bound(file), process_growth_bytes=growth)


def _efforts(program: Program) -> list[float]:
    return [FORCED, -FORCED, 0.0] if program.spec.gated else [0.0]


def _self(file: Path, *more: str) -> str:
    command = [sys.executable, __file__, "--default-peak", str(file), *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _session(file: Path, ours: bool, folder: str) -> object:
    ort = memory.runtime()
    options = ort_backend.options(1)
    if ours:
        memory.configure(options)
    if folder:
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _inputs(session: object) -> dict[str, np.ndarray]:
    inputs = {"image": np.zeros(session.get_inputs()[0].shape, dtype=np.uint8)}  # type: ignore[attr-defined]
    if session.get_overridable_initializers():  # type: ignore[attr-defined]
        inputs["effort"] = np.array(np.inf, dtype=np.float32)
    return inputs


def _default_peak(file: Path) -> int:
    """Peak in use of two all-open runs with ONNX Runtime's own memory settings, in this (fresh) process."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(file, False, folder)
        for _ in range(2):
            session.run(None, _inputs(session))  # type: ignore[attr-defined]
        events = json.loads(Path(session.end_profiling()).read_text())  # type: ignore[attr-defined]
    return max(int(e["args"]["mem_in_use_peak"]) for e in events if "mem_in_use_peak" in e.get("args", {}))


def _cpu_ms(arguments: argparse.Namespace) -> float:
    session = _session(arguments.default_peak, arguments.cpu_ms == "ours", "")
    inputs, times = _inputs(session), []
    for _ in range(RUNS):
        begin = time.process_time()
        session.run(None, inputs)  # type: ignore[attr-defined]
        times.append(1000 * (time.process_time() - begin))
    return statistics.median(times)


def _cpu_ratio(file: Path) -> float:
    """CPU time of an all-open run with our memory settings over ONNX Runtime's own: median of interleaved processes."""
    pairs = [[float(_self(file, "--cpu-ms", kind)) for kind in ("ours", "default")] for _ in range(ROUNDS)]
    return statistics.median(ours / default for ours, default in pairs)


def _short(made: BoundDetail) -> dict[str, int]:
    every = strict_json.to_data(made) | strict_json.to_data(made.bound)
    return {key: value for key, value in every.items() if key.endswith("_bytes") and value is not None}


def _machine() -> dict[str, str]:
    ort, ov = ort_backend.versions()["onnxruntime"], ov_backend.versions()["openvino"]
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return {"cpu": cpu, "arch": platform.machine(), "onnxruntime": ort, "openvino": ov}


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def _markdown(ort_rows: list[OrtRow], ov_rows: list[OpenVinoRow]) -> str:
    machine = _machine()
    lines = [
        "# Memory: bounds against measurements",
        "",
        f"Made by `EDGEVIT_DATA=... python benchmarks/memory.py` on {machine['cpu']}, one thread, batch 1, "
        f"ONNX Runtime {machine['onnxruntime']}, OpenVINO {machine['openvino']}. Sizes in MB (10^6 bytes).",
        "",
        "## ONNX Runtime: the arena",
        "",
        "Bound: weights in the arena + worst path's activations + outputs (held twice) + gaps, computed from the "
        "runtime's optimised graph. Measured: most in use at once, from the runtime's profile, in fresh processes. "
        f"Drawn: the highest of {DRAWN_PATTERNS} drawn gate patterns. The runs also passed node by node: no node of "
        "any path had more in use than the bound says for it. Capped: the all-open run under an arena that may hold "
        "exactly the bound, and half of it. Default: the same model with ONNX Runtime's own memory settings, and CPU "
        f"time of ours over it (median of {ROUNDS} interleaved pairs of processes, {RUNS} runs each). Process: growth "
        "of a fresh process from import to its peak, loading included; measured, not bounded.",
        "",
        "| model | variant | bound | of it weights / activations / gaps | all open | ratio | all skipped | real | "
        "drawn | capped at bound | at half | default | CPU time | process |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for row in ort_rows:
        made = row.bound
        sizes = (made.arena_weights_bytes, made.bound.activations_bytes, made.bound.fragmentation_bytes)
        parts = " / ".join(map(_mb, sizes))
        paths = [_mb(row.peaks[name]) if name in row.peaks else "" for name in ("all_skipped", "real")]
        drawn = _mb(max(peak for _, peak in row.drawn)) if row.drawn else ""
        passed = ["passed" if run.passed else "failed" for run in (row.capped, row.capped_at_half)]
        cpu = f"{row.cpu_ratio_to_default:.3f}" if row.cpu_ratio_to_default else ""
        cells = [row.model, row.variant, _mb(made.bound.arena_bytes), parts, _mb(row.peaks["all_open"])]
        cells += [f"{row.ratio_all_open:.3f}", *paths, drawn, *passed, _mb(row.default_peak_bytes), cpu]
        lines.append(f"| {' | '.join([*cells, _mb(row.process_growth_bytes)])} |")
    lines += [
        "",
        "## OpenVINO: tensors, and the process",
        "",
        "Proven: " + ov_bound.COVERS + ". Process: growth of a fresh process from import to its peak.",
        "",
        "| model | variant | tensors (proven) | of it constants / activations | process (measured) |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for item in ov_rows:
        bound = item.bound.bound
        parts = " / ".join(map(_mb, (bound.weights_bytes, bound.activations_bytes)))
        cells = [item.model, item.variant, _mb(bound.bound_bytes), parts, _mb(item.process_growth_bytes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
