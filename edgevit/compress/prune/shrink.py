"""Carry out a `PrunePlan`: tensors really get smaller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.compress.prune.compensate import columns_of, compensated
from edgevit.compress.prune.observe import Statistics, output_linear
from edgevit.compress.prune.plan import PrunePlan
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec


def shrink(program: Program, plan: PrunePlan, statistics: Statistics | None) -> Program:
    """Return the Program with only the planned units; a branch that keeps all of them keeps its arrays bit for bit.

    With `statistics`, what the removed units contributed is folded into the output linears that are left, and a branch
    that is gone leaves `skip` rows, the mean of its output. Without, units are simply cut out, and a branch that is
    gone keeps the `skip` rows it has.
    """
    branches, changed = [], {}
    for branch, planned in zip(program.spec.branches, plan.branches, strict=True):
        if planned.kept == branch.kept:
            branches.append(branch)
        elif planned.kept:
            branches.append(replace(branch, kept=planned.kept))
            changed.update(_cut(program, branch, planned.kept, statistics))
        else:
            branches.append(replace(branch, kept=(), gate=None, skip=branch.skip or statistics is not None))
            if statistics is not None:
                changed[f"{branch.name}.skip"] = statistics[branch.name].output.astype(np.float32)
    return program.with_weights(changed, replace(program.spec, branches=tuple(branches)))


def leave_biases(program: Program, plan: PrunePlan) -> Program:
    """Give skip rows to every branch that will be gone and has none: its output bias, all it adds without units."""
    branches, changed = [], {}
    for branch, planned in zip(program.spec.branches, plan.branches, strict=True):
        gone = not planned.kept and not branch.removed and not branch.skip
        branches.append(replace(branch, skip=True) if gone else branch)
        if gone:
            bias = program.weights[f"{output_linear(branch)}.bias"]
            changed[f"{branch.name}.skip"] = np.tile(bias, (program.spec.stem.prefix + 1, 1))
    return program.with_weights(changed, replace(program.spec, branches=tuple(branches)))


def _cut(
    program: Program, branch: BranchSpec, kept: tuple[int, ...], statistics: Statistics | None
) -> dict[str, np.ndarray]:
    """Return the arrays of one branch with fewer units."""
    name, arrays = branch.name, program.weights
    unit = branch.head_dim if branch.kind == "mhsa" else 1
    keep = columns_of([branch.kept.index(u) for u in kept], unit)
    if branch.kind == "mhsa":
        into, columns = f"{name}.qkv", np.concatenate([keep + part * branch.width for part in range(3)])
    else:
        into, columns = f"{name}.fc1", keep
    out = output_linear(branch)
    weight, bias = arrays[f"{out}.weight"][keep], arrays[f"{out}.bias"]
    if statistics is not None:
        known = statistics[name]
        full = arrays[f"{out}.weight"]
        weight, bias = compensated(full, bias, known.mean, known.covariance, keep)
    return {
        f"{into}.weight": arrays[f"{into}.weight"][:, columns],
        f"{into}.bias": arrays[f"{into}.bias"][columns],
        f"{out}.weight": weight.astype(np.float32),
        f"{out}.bias": bias.astype(np.float32),
    }
