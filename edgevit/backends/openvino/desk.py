"""What the machine that builds asks of OpenVINO; see `edgevit.backends.Desk`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgevit.backends import Build, Forecast, MemoryEvidence
from edgevit.backends import openvino as runtime
from edgevit.backends.onnxruntime import written_bytes
from edgevit.backends.openvino import memory_bound
from edgevit.backends.openvino.merged import merged as merged
from edgevit.backends.openvino.rewrite import rewrite
from edgevit.bundle.guide import Guide
from edgevit.bundle.runner_source import joined
from edgevit.measure.fresh_process import probe_local
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import Target

GATE_MS = 0.0
BOUNDED = False
EXAMPLE = ("CMakeLists.txt", "main.cpp")


def predict(program: Program, plan: QuantPlan | None, target: Target) -> Forecast:
    """Return bytes: the IR holds what an ONNX model with its weights beside it does, and nearly as much of a graph."""
    return Forecast(
        model_bytes=written_bytes(*rewrite(*detached(program, plan), arch=target.arch)),
        holds="weights and graph",
        bound_bytes=None,
    )


def linear_kernels(build: Build) -> tuple[tuple[str, bool], ...]:
    """Return the kernels of the ungated twin of the same plan: the runtime graph shows no branch bodies."""
    twin = assemble(build.program, build.plan, gating="open")
    return runtime.linear_kernels(twin, precision=build.target.inference_precision)


def executed(build: Build) -> None:
    """Return None: OpenVINO tells of an If that it ran, not what ran in it."""
    return None


def kernel_macs(build: Build) -> None:
    return None


def memory(build: Build, image: np.ndarray, efforts: Mapping[str, float], *, runs: bool) -> MemoryEvidence:
    """Bound the graph's tensors; the process, which holds more, is measured, and said but not kept."""
    model, target = build.folder / runtime.MODEL, build.target
    detail = memory_bound.bound(model)
    probe = probe_local(
        runtime.__name__,
        model,
        image,
        # The peak is the process's, so that the paths' order does not matter.
        tuple(efforts.values()),
        threads=target.threads,
        precision=target.inference_precision,
    )
    peak = probe.process.peak_bytes - probe.process.imported_bytes if probe.process else None
    size = detail.bound.bound_bytes / 1e6
    summary = f"{size:.2f} MB proven for the graph's tensors; the process holds more: profile it"
    remark = "" if peak is None else f"a fresh process grew by {peak / 1e6:.1f} MB (measured, not a bound)"
    return MemoryEvidence(detail=detail, summary=summary, remark=remark)


def runner_source() -> str:
    return joined(Path(__file__).with_name("shipped_runner.py"))


def guide() -> Guide:
    here = Path(__file__).parent
    return Guide(
        packages={"openvino": "Apache-2.0"},
        linking=(here / "linking.md").read_text(encoding="utf-8"),
        example={f"example/{name}": (here / "example" / name).read_text(encoding="utf-8") for name in EXAMPLE},
    )
