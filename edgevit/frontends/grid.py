"""Which grid of patches the rows of a position embedding stand for. Their number alone does not always tell."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevit.errors import WeightsError
from edgevit.util.progress import Say

Size = tuple[int, int]
# A grid is doubted when its neighbours differ by this factor more than those of another one. Rows of trained models
# differ by a factor of 2 and more; noise, as random weights have it, by a few percent.
_DOUBT = 1.25
_FEW = 16  # rows that say too little


def grid_of(rows: int, patch: int, *, default: Size, asked: Size | None, what: str) -> Size:
    """Rows and columns of patches: those of the size asked for if their number fits, else the default's, else a square.

    Args:
        rows: of the position embedding, prefix tokens not counted.
        patch: side of a patch in pixels.
        default: height and width that the model has by itself.
        asked: height and width that the user gave.
        what: the model, for messages.

    Raises:
        WeightsError: none of these has as many patches.
    """
    for size in (asked, default):
        if size is not None and (size[0] // patch) * (size[1] // patch) == rows:
            return size[0] // patch, size[1] // patch
    side = math.isqrt(max(0, rows))
    if rows > 0 and side * side == rows:
        return side, side
    pairs = _pairs(rows)
    examples = " or ".join(f"{r * patch},{c * patch}" for r, c in pairs[:2]) or "none"
    raise WeightsError(
        f"the position embedding of the weights has {rows} rows, which is no square and not the grid of {what} "
        f"({default[0]} x {default[1]} pixels, patches of {patch}); say which image size they are for with "
        f"--image-size H,W, such as {examples}"
    )


def say_grid(grid: Size, table: Tensor, patch: int, *, default: Size, asked: Size | None, say: Say) -> None:
    """Tell how the rows `table [rows, dim]` were read, where it is not simply the model's own grid.

    A warning where another reading makes smoother neighbours.
    """
    height, width = grid[0] * patch, grid[1] * patch
    usual = (default[0] // patch, default[1] // patch)
    if asked is None and grid != usual:
        say(
            f"image size taken as {height}x{width} from the weights ({grid[0]} x {grid[1]} patches, where the model's "
            f"own size is {default[0]}x{default[1]}); --image-size H,W says otherwise"
        )
    elif asked is not None and asked != (height, width):
        say(
            f"position embedding resampled from {grid[0]} x {grid[1]} to {asked[0] // patch} x {asked[1] // patch} "
            f"patches, as --image-size {asked[0]},{asked[1]} differs from the weights' {height}x{width}"
        )
    elif asked is not None and grid != usual:
        say(f"the {len(table)} rows of the position embedding are read as {grid[0]} x {grid[1]} patches, as asked")
    other = smoother_grid(table, grid)
    if other is not None:
        say(
            f"warning: the position embedding looks like {other[0]} x {other[1]} patches, not {grid[0]} x {grid[1]}; "
            f"if the weights are for {other[0] * patch}x{other[1] * patch} pixels, pass "
            f"--image-size {other[0] * patch},{other[1] * patch}"
        )


def smoother_grid(table: Tensor, grid: Size) -> Size | None:
    """Return another grid whose neighbours are clearly more alike than those of `grid`, None if there is none.

    Learned position embeddings vary slowly over the image, so that the true grid has the most similar neighbours.
    """
    if len(table) < _FEW:
        return None
    read = _roughness(table, grid)
    found = [(c, r) for r, c in _pairs(len(table))] + [(r, c) for r, c in _pairs(len(table))]
    rough = {pair: _roughness(table, pair) for pair in found if pair != grid}
    best = min(rough, key=lambda pair: rough[pair], default=None)
    return best if best is not None and rough[best] * _DOUBT < read else None


def _roughness(table: Tensor, grid: Size) -> float:
    """Return the mean squared difference of rows to the neighbours below and beside them."""
    plane = table.reshape(*grid, -1)
    beside, below = plane[:, 1:] - plane[:, :-1], plane[1:] - plane[:-1]
    squares = torch.cat([beside.flatten(), below.flatten()]).square()
    return float(squares.mean()) if squares.numel() else math.inf


def _pairs(rows: int) -> list[Size]:
    """Grids of so many patches at most four times as long as high or the reverse, those nearest to a square first."""
    found = [(r, rows // r) for r in range(1, math.isqrt(max(0, rows)) + 1) if rows % r == 0 and rows // r <= 4 * r]
    return found[::-1]
