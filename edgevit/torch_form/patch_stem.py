"""The patch embedding: a Linear on every patch, and positions that follow the image's size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from edgevit.torch_form.layers import Layers, Tap


def embed(model: Layers, images: Tensor, tap: Tap | None) -> Tensor:
    """Map images `[B, 3, height, width]`, whole patches, to `[B, patches, D]` with positions."""
    p = model.spec.stem.patch
    rows, columns = images.shape[2] // p, images.shape[3] // p
    x = images.reshape(-1, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
    x = x.reshape(-1, rows * columns, p * p * 3)
    return model.linear("stem", x, tap) + positions(model, rows, columns)


def positions(model: Layers, rows: int, columns: int) -> Tensor:
    """Return the position embedding `[rows * columns, D]`, resampled as timm does where the Program's grid is other."""
    pos = model.array("stem.pos")
    if (rows, columns) == model.spec.grid:
        return pos
    grid = pos.reshape(1, *model.spec.grid, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(rows * columns, -1)
