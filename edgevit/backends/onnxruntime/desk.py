"""What the machine that builds asks of ONNX Runtime; see `edgevit.backends.Desk`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgevit.backends import Build, Executed, Forecast, KernelMacs, MemoryEvidence
from edgevit.backends import onnxruntime as runtime
from edgevit.backends.onnxruntime import arena, memory_bound
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.onnxruntime.merged import merged as merged
from edgevit.bundle.guide import Guide
from edgevit.bundle.runner_source import joined
from edgevit.onnx_form.assemble import detached
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import Target

GATE_MS = 0.0
BOUNDED = True
# A program in C, and what it needs that comes with no package of the runtime.
EXAMPLE = ("CMakeLists.txt", "main.c")
HEADER, LICENCE = "onnxruntime_c_api.h", "LICENSE.onnxruntime"


def predict(program: Program, plan: QuantPlan | None, target: Target) -> Forecast:
    model = fuse(*detached(program, plan), arch=target.arch)
    return Forecast(
        model_bytes=runtime.written_bytes(*model),
        holds="weights and graph",
        bound_bytes=memory_bound.bound(*model).bound.bound_bytes,
    )


def linear_kernels(build: Build) -> tuple[tuple[str, bool], ...]:
    return runtime.linear_kernels(build.model, precision=build.target.inference_precision, arch=build.target.arch)


def executed(build: Build) -> Executed:
    return lambda image, effort: runtime.executed(build.folder, image, effort)


def kernel_macs(build: Build) -> KernelMacs:
    return lambda image, effort: runtime.kernel_macs(build.folder, image, effort)


def memory(build: Build, image: np.ndarray, efforts: Mapping[str, float], *, runs: bool) -> MemoryEvidence:
    """Prove a bound over all paths, hold the arena of a fresh process against it, and run inside a cap of it."""
    onnx = "onnx" in build.target.formats
    path = build.folder / runtime.FILES["onnx" if onnx else "ort"]
    detail = memory_bound.bound(path if onnx else fuse(build.model, arch=build.target.arch)[0])
    settings = runtime.entries(build.target.weight_bits)
    measured = arena.measure_arena(path, image, settings=settings)
    sequence = arena.drawn_efforts() if build.program.spec.adaptive else arena.TWICE
    capped = arena.run_capped(path, detail, image, settings=settings, efforts=sequence)
    peak = max(each.peak_bytes for each in measured)
    summary = (
        f"{detail.bound.bound_bytes / 1e6:.2f} MB proven over all paths; arena peak {peak / 1e6:.2f} MB measured, "
        f"{_ran(build)} under a cap of {capped.cap_bytes / 1e6:.2f} MB"
    )
    return MemoryEvidence(detail=detail, summary=summary, measured=measured, capped=capped, exact=True)


def _ran(build: Build) -> str:
    if not build.program.spec.adaptive:
        return "all-open run passes"
    return "runs of most, fewest and drawn numbers of tokens pass"


def runner_source() -> str:
    return joined(Path(__file__).with_name("shipped_runner.py"))


def guide() -> Guide:
    here = Path(__file__).parent
    texts = {name: (here / "example" / name).read_text(encoding="utf-8") for name in (*EXAMPLE, HEADER, LICENCE)}
    return Guide(
        packages={"onnxruntime": "MIT"},
        licences={f"example/{HEADER}": "MIT"},
        linking=(here / "linking.md").read_text(encoding="utf-8"),
        example={
            **{f"example/{name}": texts[name] for name in EXAMPLE},
            # No package of the runtime has its header; what it declares stays, so that one version serves all later.
            f"example/{HEADER}": f"{{% raw %}}{texts[HEADER]}{{% endraw %}}",
            "licences/onnxruntime.txt": texts[LICENCE],
        },
    )
