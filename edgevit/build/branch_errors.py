"""Where a build departs from float: the error of the stream after every branch, on a few images, all branches open.

No token is merged: int8 may merge other pairs than float, and the streams would differ by what that mixes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.reference import taps
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.util.threads import in_order

IMAGES, SMALLEST = 4, 1e-12
MOST_BYTES = 500_000_000  # of float weights: a larger model would need as much memory twice more

Errors = tuple[float | None, ...]


def branch_errors(program: Program, lowered: Program, plan: QuantPlan | None, images: NDArray[np.uint8]) -> Errors:
    """Return the length of the difference over that of the float stream, after every branch, the mean over images.

    The quantized graph is computed as it is written, so that it is the rounding alone, whatever this CPU's kernels do.
    None: nothing is quantized, or the model is too large.

    Args:
        program: the float model.
        lowered: the same, smoothed, as it was quantized.
        plan: how.
        images: uint8 `[n, height, width, 3]`; the first IMAGES are used.
    """
    branches = program.spec.branches
    if plan is None or sum(array.nbytes for array in program.weights.values()) > MOST_BYTES:
        return (None,) * len(branches)
    few, names = images[:IMAGES], [f"stream:{branch.name}" for branch in branches]
    before = _streams(_unmerged(program), None, few)
    after = _streams(_unmerged(lowered), plan, few)
    return tuple(_error([one[name] for one in before], [one[name] for one in after]) for name in names)


def _unmerged(program: Program) -> Program:
    return program.with_weights({}, replace(program.spec, merges=())) if program.spec.merges else program


def _streams(program: Program, plan: QuantPlan | None, images: NDArray[np.uint8]) -> list[dict[str, np.ndarray]]:
    run = taps(assemble(program, plan, gating="open", streams=True), optimised=False)
    return list(in_order(lambda image: run(image[None]), images))


def _error(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    pairs = zip(before, after, strict=True)
    return float(np.mean([_length(other - one) / max(_length(one), SMALLEST) for one, other in pairs]))


def _length(stream: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(stream))
