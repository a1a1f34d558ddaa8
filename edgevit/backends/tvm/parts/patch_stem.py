"""The patch embedding: one Linear on all patches of the image, uint8 in, normalisation folded into it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.backends.tvm.codegen import integers
from edgevit.backends.tvm.codegen.integers import Integers
from edgevit.backends.tvm.codegen.layout import Place, pad_columns
from edgevit.backends.tvm.kernels import common
from edgevit.backends.tvm.kernels.common import Epilogue
from edgevit.backends.tvm.parts.stage import Shared, StageWriter
from edgevit.program.spec import ProgramSpec


def embed(shared: Shared, stage: StageWriter, target: Place) -> None:
    """Map uint8 image to `target` `[patches, D]` with positions; normalisation is folded in exactly."""
    spec, weights, image = shared.spec, shared.program.weights, shared.spec.image
    entry = shared.entry("stem")
    weight, offset = fold_normalisation(spec, weights["stem.weight"])
    table = weights["stem.pos"] + weights["stem.bias"] + offset
    if entry is not None:
        # The kernel sees pixel - zero_point: a zero point near the mean pixel keeps rounding from adding up.
        table = table + entry.zero_point * weight.sum(axis=0)
        if shared.plan.activations == "int8":
            # Pixels are uint8 whatever other inputs are.
            entry = replace(entry, zero_point=entry.zero_point - 128)
    patches = stage.input(entry, spec.patches, weight.shape[0])
    build = integers.pixels if isinstance(patches, Integers) else common.patches
    stage.call("patches", build, image.height, image.width, spec.stem.patch, patches, takes=("image", "arena"))
    position = stage.blob.add(pad_columns(table, target.stride))
    stage.product("stem", entry, patches, target, weight, None, Epilogue(table=position))


def fold_normalisation(spec: ProgramSpec, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[patch * patch * 3, dim]` for normalised pixels to (weights, offset `[dim]`) for pixels 0..255."""
    mean, std = (
        np.tile(np.array(v, dtype=np.float64), len(weight) // 3)[:, None] for v in (spec.image.mean, spec.image.std)
    )
    scaled = weight.astype(np.float64) / std
    return (scaled / 255.0).astype(np.float32), -(scaled * mean).sum(axis=0).astype(np.float32)
