"""Walking the residual stream over unlabelled images: what pruning and gating share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import ImagesError
from edgevit.program.spec import BranchSpec, ProgramSpec
from edgevit.torch_form.layers import Tap
from edgevit.torch_form.tokens import Sizes
from edgevit.torch_form.vit import Vit, normalise

BATCH = 16


def batches(spec: ProgramSpec, images: np.ndarray, size: int = BATCH) -> list[Tensor]:
    """Return normalised batches `[<= size, 3, height, width]` of uint8 images `[n, height, width, 3]`.

    Raises:
        ImagesError: no images, or images of another shape or type than the model's input.
    """
    expected = (spec.image.height, spec.image.width, 3)
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[1:] != expected or images.dtype != np.uint8:
        raise ImagesError(
            f"calibration images are {images.dtype} {list(images.shape)}; {spec.name} needs at least one image, "
            f"uint8 [n, {expected[0]}, {expected[1]}, 3]"
        )
    return [normalise(spec, images[i : i + size]) for i in range(0, len(images), size)]


def step_branch(model: Vit, branch: BranchSpec, x: Tensor, tap: Tap | None = None, sizes: Sizes = None) -> Tensor:
    """Return the stream `[B, N, D]` after one branch, its gate open; no token is merged."""
    return x + (model.skip_rows(branch)[: x.shape[1]] if branch.removed else model.branch(branch, x, tap, sizes))


def row_means(model: Vit, y: Tensor) -> Tensor:
    """Mean of `[B, N, D]` over images, per prefix row and over all patch rows: `[prefix + 1, D]` (skip rows)."""
    return (model.indicator.T @ y.mean(dim=0)) / model.indicator.sum(dim=0)[:, None]


def accumulate(total: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Running float64 sum by name."""
    total[name] = total[name] + value.double() if name in total else value.double()


@torch.no_grad()
def mean_outputs(model: Vit, work: list[Tensor]) -> dict[str, Tensor]:
    """Return the mean output `[prefix + 1, D]` of every branch that is left, float32, on batches from `batches`."""
    total: dict[str, Tensor] = {}
    for batch in work:
        x = model.stem(batch)
        for branch in model.spec.branches:
            before, x = x, step_branch(model, branch, x)
            if not branch.removed:
                accumulate(total, branch.name, row_means(model, x - before) * len(batch))
    count = sum(len(b) for b in work)
    return {name: (value / count).float() for name, value in total.items()}
