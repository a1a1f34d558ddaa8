"""Move the spread between an activation's channels into the weights, where per-channel int8 can hold it.

SmoothQuant (Xiao et al., 2023, eq. 4) with the scales folded away: a LayerNorm's affine part is divided and the rows of
the Linear after it multiplied (`qkv`, `fc1`); columns of V against rows of `proj`; a ReLU's `fc1` against `fc2`, since
relu(x / s) = relu(x) / s. No scale passes a GELU.
"""

from __future__ import annotations

import numpy as np

from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.quantize.observe import Ranges


def smooth(program: Program, ranges: Ranges, alpha: float) -> Program:
    """Return the same function with smoother activations; `ranges` must be observed anew on what is returned.

    Scales are powers of two, so the function is the same to the last bit (as long as nothing overflows).

    Args:
        program: the model.
        ranges: what was observed on it.
        alpha: 0..1, how much of the activation's spread moves into the weights; 0 and below changes nothing.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"smoothing is {alpha}; it must lie within 0 (off) and 1")
    if alpha == 0:
        return program
    changed: dict[str, np.ndarray] = {}
    for branch in program.spec.branches:
        if not branch.removed:
            changed |= _smooth_branch(program, ranges, branch, alpha)
    return program.with_weights(changed)


def _smooth_branch(program: Program, ranges: Ranges, branch: BranchSpec, alpha: float) -> dict[str, np.ndarray]:
    name, width = branch.name, branch.width
    first, second = (f"{name}.qkv", f"{name}.proj") if branch.kind == "mhsa" else (f"{name}.fc1", f"{name}.fc2")
    new = {key: program.weights[key].copy() for key in program.weights if key.startswith(f"{name}.")}
    scale = _scales(program, ranges, first, alpha)
    for part in ("weight", "bias"):
        new[f"{name}.norm.{part}"] /= scale
    new[f"{first}.weight"] *= scale[:, None]
    if branch.kind == "mhsa" or branch.activation == "relu":
        scale = _scales(program, ranges, second, alpha)
        new[f"{first}.weight"][:, -width:] /= scale
        new[f"{first}.bias"][-width:] /= scale
        new[f"{second}.weight"] *= scale[:, None]
    return new


def _scales(program: Program, ranges: Ranges, linear: str, alpha: float) -> np.ndarray:
    """One power of two per input column of a Linear, `[in]`: |x|max ** alpha / |w|max ** (1 - alpha), rounded."""
    weight_max = np.abs(program.weights[f"{linear}.weight"]).max(axis=1).astype(np.float64)
    seen = ranges.tensor(linear)
    if seen is None:
        return np.ones(len(weight_max), dtype=np.float32)
    spread = seen.column_abs_max.astype(np.float64)
    # A channel that is never used, on either side, has nothing to move.
    spread, weight_max = (np.where((spread > 0) & (weight_max > 0), v, 1.0) for v in (spread, weight_max))
    # Beyond 2**16 a channel is all but dead, and float32 has no need to be strained.
    exponent = np.clip(np.rint(np.log2(spread**alpha / weight_max ** (1 - alpha))), -16, 16)
    return np.asarray(2.0**exponent, dtype=np.float32)
