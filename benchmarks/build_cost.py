"""What a whole build costs, from ViT-Ti to ViT-L: reports/reference/build-cost.md and .json.

python -m benchmarks.build_cost

Every build runs in a fresh process, which makes the model with random weights (seed 0), so it needs no data: what a
build costs depends on a model's shape. Calibration is on the photographs that ship. CPU time is that of all threads and
of every process that the build starts; peak memory is the largest resident set of one of them, torch included, which
only makes the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cpu_class import VNNI
from edgevit.backends import backend
from edgevit.build.prediction import predict
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.measure.environment import cpu_flags
from edgevit.pipeline import build
from edgevit.program.program import Program
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import load_target
from edgevit.util import strict_json
from edgevit.util.resources import shipped

MODELS = tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
TARGET = "x86-64-onnxruntime"
STAGES: Mapping[str, str] = {
    "Quantizing": "quantize",
    "Lowering": "compile",
    "Compiling": "compile",
    "Writing": "compile",
}
STAGED = "stages"  # what benchmarks/build_stages.py tells
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One build. `cpu_s` by stage: what the building process spent there, without the processes it started."""

    model: str
    parameters: int
    float_bytes: int
    model_bytes: int
    dry_run_s: float
    stages: dict[str, float]
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_bytes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="timm names with commas (default: %(default)s)")
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--out", type=Path, default=Path("reports/reference"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(strict_json.dumps(build_one(arguments.one, arguments.target)))
        return
    rows = []
    for name in arguments.models.split(","):
        command = [sys.executable, "-m", "benchmarks.build_cost", "--one", name, "--target", arguments.target]
        rows.append(measure(command))
        print(f"{name}: {rows[-1].cpu_s:.0f} s CPU, {rows[-1].peak_bytes / 1e9:.2f} GB", file=sys.stderr)
    conditions = machine(arguments.target)
    update(
        arguments.out,
        {"command": "python -m benchmarks.build_cost", **conditions, "builds": strict_json.to_data(rows)},
    )


def update(out: Path, told: Mapping[str, Any]) -> None:
    """Put what a run told into build-cost.json, beside what others told of other things, and write build-cost.md."""
    path = out / "build-cost.json"
    document = {**(strict_json.read_json(path) if path.is_file() else {}), **told}
    out.mkdir(parents=True, exist_ok=True)
    strict_json.write_atomic(path, json.dumps(document, indent=2) + "\n")
    strict_json.write_atomic(out / "build-cost.md", render(document))


def render(document: Mapping[str, Any]) -> str:
    """Return build-cost.md of all that build-cost.json tells."""
    rows = [Cost(**row) for row in document.get("builds", ())]
    parts = [markdown(rows, document)] if rows else ["# What a build costs\n"]
    return "\n".join([*parts, *([staged(document[STAGED])] if STAGED in document else [])])


def measure(command: Sequence[str]) -> Cost:
    """Run a process that prints a `Cost`, and fill in what it and its children used."""
    begin = time.perf_counter()
    answer, usage = finished(command)
    faults: list[str] = []
    found = strict_json.from_data(Cost, answer, faults, "cost")
    if found is None:
        raise SystemExit("; ".join(faults))
    return replace(
        found,
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.perf_counter() - begin,
        peak_bytes=usage.ru_maxrss * MAXRSS_BYTES,
    )


def finished(command: Sequence[str]) -> tuple[Any, resource.struct_rusage]:
    """Run a process; return what it prints, as JSON, and what it and its children used."""
    with tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(command, stdout=answer)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        answer.seek(0)
        return json.load(answer), usage


def build_one(name: str, target_name: str) -> Cost:
    """Build `name` with random weights in this process and time its stages."""
    program = random_program(name)
    # Nothing that random weights decide is near to nothing else: how often int8 agrees with float says nothing.
    target = replace(load_target(target_name), min_agreement=0.0)
    calibration = load_images(shipped("calibration") / "shipped.toml", program.spec.image, splits=("train",))
    recipe = Recipe(
        model=name,
        weights_sha256="",
        prune=0.0,
        gate=1.0,
        seed=0,
        calibration="shipped",
        calibration_images=len(calibration.images),
        calibration_sha256=calibration.digest,
    )
    begin = time.process_time()
    predict(program, target)
    dry_run_s = time.process_time() - begin
    lines: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        built = build(
            program,
            target,
            calibration,
            Path(folder) / "bundle",
            recipe=recipe,
            say=lambda line: lines.append((line, time.process_time())),
        )
    return Cost(
        model=name,
        parameters=built.manifest.sizes.parameters,
        float_bytes=built.manifest.sizes.float_bytes,
        model_bytes=built.manifest.sizes.model_bytes,
        dry_run_s=dry_run_s,
        stages=stages([*lines, ("end", time.process_time())]),
    )


def random_program(name: str) -> Program:
    import torch

    torch.manual_seed(0)
    return from_timm(name, pretrained=False)


def stages(lines: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Seconds of `quantize`, `compile` and `verify` from what a build said and when; the last line only ends it."""
    spent = dict.fromkeys((*STAGES.values(), "verify"), 0.0)
    for (line, begin), (_, end) in zip(lines, lines[1:], strict=False):
        spent[STAGES.get(line.partition(" ")[0], "verify")] += end - begin
    return spent


def machine(target: str) -> dict[str, Any]:
    """The conditions of a run."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return {
        "target": target,
        "cpu": cpu or platform.machine(),
        "vnni": [flag for flag in sorted(VNNI) if flag in cpu_flags()],
        "cores": os.cpu_count(),
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "all"),
        **backend(load_target(target).backend).versions(),
    }


def markdown(rows: Sequence[Cost], conditions: Mapping[str, Any]) -> str:
    runtime = load_target(conditions["target"]).backend
    lines = [
        "# What a build costs",
        "",
        f"Made by `python -m benchmarks.build_cost` on {conditions['cpu']} "
        f"({', '.join(conditions['vnni']) or 'no VNNI'}), {conditions['cores']} cores, OMP_NUM_THREADS "
        f"{conditions['blas_threads']}, {runtime} {conditions[runtime]}, target {conditions['target']}. One build "
        "each, random weights, no gates, calibrated on the photographs that ship.",
        "",
        "CPU: seconds of all threads and processes, from the start of Python on; making the model with torch is in it, "
        "in none of the stages. Peak: the largest resident set of a process, torch included. Dry run: CPU seconds of "
        "`--dry-run` once the model is loaded. MB are 10^6 bytes.",
        "",
        "| model | parameters | float | int8 | CPU | of it quantizing | compiling | verifying | wall | peak | "
        "peak / float | dry run |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        parts = [f"{row.stages[name]:.0f} s" for name in ("quantize", "compile", "verify")]
        cells = [row.model, f"{row.parameters / 1e6:.1f} M"]
        cells += [f"{size / 1e6:.0f} MB" for size in (row.float_bytes, row.model_bytes)]
        cells += [f"{row.cpu_s:.0f} s", *parts, f"{row.wall_s:.0f} s", f"{row.peak_bytes / 1e6:.0f} MB"]
        cells += [f"{row.peak_bytes / row.float_bytes:.1f}", f"{row.dry_run_s:.1f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def staged(told: Mapping[str, Any]) -> str:
    """Return the part of build-cost.md with the stages of builds, from what build_stages.py told."""
    runtime, builds = load_target(told["target"]).backend, told["builds"]
    first, last = told["load"]
    lines = [
        "## Where the time goes",
        "",
        f"Made by `{told['command']}` on {told['cpu']} ({', '.join(told['vnni']) or 'no VNNI'}), {told['cores']} "
        f"cores, OMP_NUM_THREADS {told['blas_threads']}, load {first:.1f} to {last:.1f}, {runtime} {told[runtime]}, "
        f"target {told['target']}. One build each from a Program in a fresh process, from the start of Python on, with "
        f"{builds[0]['images']} images, of which {builds[0]['calibrating']} calibrate and the others judge.",
        "",
        "CPU: seconds of all threads and of processes that were started. Wall: seconds on this machine under this "
        "load; on two cores that have nothing else to do they lie between half of CPU and CPU. Asked: "
        f"{told['asked_s']:.0f} s on two quiet cores for the gated model. Peak: the largest resident set of a process.",
        "",
        "| stage | " + " | ".join(f"{one['model']}: wall | CPU" for one in builds) + " |",
        "| --- |" + " ---: | ---: |" * len(builds),
    ]
    for name in dict.fromkeys(name for one in builds for name in one["stages"]):
        taken = [one["stages"].get(name) for one in builds]
        cells = ["–" if t is None else f"{t[key]:.1f} s" for t in taken for key in ("wall_s", "cpu_s")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sums = [sum(s[key] for s in one["stages"].values()) for one in builds for key in ("wall_s", "cpu_s")]
    lines.append(f"| all | {' | '.join(f'{value:.1f} s' for value in sums)} |")
    peaks = " | | ".join(f"{one['peak_bytes'] / 1e6:.0f} MB" for one in builds)
    return "\n".join([*lines, f"| peak | {peaks} | |", ""])


if __name__ == "__main__":
    main()
