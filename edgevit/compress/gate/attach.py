"""Attach a gate to every branch of a Program: one logit from the normalised class token, or from the mean token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.program.program import Program
from edgevit.program.spec import GateSpec, PoolKind


def attach_gates(program: Program) -> Program:
    """Return the Program with a gate (weight, bias 0) and skip rows (0 where there were none) on every branch left."""
    spec = program.spec
    pool: PoolKind = "prefix" if spec.stem.prefix else "mean"
    branches = tuple(
        b if b.removed else replace(b, gate=GateSpec(pool=pool, threshold=0.0), skip=True) for b in spec.branches
    )
    new: dict[str, np.ndarray] = {}
    for branch in branches:
        if branch.gate is not None:
            new[f"{branch.name}.gate.weight"] = np.zeros(spec.dim, np.float32)
            new[f"{branch.name}.gate.bias"] = np.zeros(1, np.float32)
            new[f"{branch.name}.skip"] = np.zeros((spec.stem.prefix + 1, spec.dim), np.float32)
    return program.with_weights(new, replace(spec, branches=branches))
