"""Gates that turned out constant: a branch that always runs needs no gate, one that never runs need not be there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.compress.gate.threshold import open_rates
from edgevit.program.program import Program

FEWEST_IMAGES = 200  # that agree: then a gate decides otherwise for at most 1.5 % of such images (95 %, rule of three)


def fold_constant(program: Program, images: np.ndarray) -> Program:
    """Return the Program without gates that decide alike for all of `images` (uint8 `[n, height, width, 3]`).

    A branch that ran for every image loses its gate; one that ran for none goes, and its skip rows stay. Both are
    exact on these images, and `effort` no longer moves them. Fewer than 200 images prove nothing: all gates stay.
    """
    spec = program.spec
    if not spec.gated or len(images) < FEWEST_IMAGES:
        return program
    ran = open_rates(program, images).mean(axis=0)
    branches = []
    for branch, rate in zip(spec.branches, ran, strict=True):
        if branch.gate is None or 0 < rate < 1:
            branches.append(branch)
        elif rate == 1:
            branches.append(replace(branch, gate=None, skip=False))
        else:
            branches.append(replace(branch, kept=(), gate=None))
    return program.with_weights({}, replace(spec, branches=tuple(branches)))
