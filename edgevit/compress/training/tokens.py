"""Following the teacher inside: token streams at four depths, besides its logits.

A pruned model keeps the width and depth of its residual stream, so tokens compare without projections. Layer by layer
they say far more of an image than its logits, which matters most where images are few (ZipLM, arXiv 2302.04089, has
such a loss for language models; this one, with its depths, its norm and its pooling, is ours).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import ProgramSpec

CELLS = 7  # tokens are averaged over a grid of at most so many cells a side, where images of several sizes meet


def places(spec: ProgramSpec) -> tuple[int, ...]:
    """Return the branches whose input streams are compared: the MHSA at each quarter of the depth, and the last."""
    mhsa = [i for i, b in enumerate(spec.branches) if b.kind == "mhsa"]
    return tuple(sorted({*(mhsa[len(mhsa) * quarter // 4] for quarter in (1, 2, 3)), mhsa[-1]}))


class Streams:
    """The streams of one forward pass at `places`; `watch` is the model's hook."""

    def __init__(self, spec: ProgramSpec) -> None:
        self.spec, self.places = spec, places(spec)
        self._seen: dict[int, Tensor] = {}

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of what `take` gives for so many images."""
        rows, columns = cells(self.spec)
        return len(self.places), images, self.spec.stem.prefix + rows * columns, self.spec.dim

    def watch(self, index: int, x: Tensor) -> None:
        """Take the stream `[B, N, D]` before a branch, unless its patch tokens are trimmed already."""
        if index in self.places and x.shape[1] > self.spec.stem.prefix:
            self._seen[self.places.index(index)] = summary(self.spec, x)

    def take(self) -> Tensor:
        """Return what was seen of every place, `[places, B, prefix + cells, D]`; NaN where the stream was trimmed."""
        some = next(iter(self._seen.values()))
        found = [self._seen.get(place, torch.full_like(some, math.nan)) for place in range(len(self.places))]
        self._seen = {}
        return torch.stack(found)

    def loss(self, teacher: Tensor) -> Tensor:
        """Return the mean squared error to the teacher's `take` over the places seen (0 without any); forget them."""
        errors = [F.mse_loss(seen, teacher[place].float()) for place, seen in self._seen.items()]
        self._seen = {}
        return torch.stack(errors).mean() if errors else teacher.new_zeros((), dtype=torch.float32)


def cells(spec: ProgramSpec) -> tuple[int, int]:
    """Return rows and columns of the grid that patch tokens are averaged over: the model's, or `CELLS` a side."""
    height, width = spec.grid
    return min(CELLS, height), min(CELLS, width)


def summary(spec: ProgramSpec, x: Tensor) -> Tensor:
    """Reduce a stream `[B, N, D]` of images of any size to normalised rows `[B, prefix + cells, D]`, float32.

    Patch tokens are averaged over the grid of `cells`; each row then has mean 0 and deviation 1, so that no depth and
    no image weighs more than another.
    """
    prefix, (height, width) = spec.stem.prefix, spec.grid
    rows = round(math.sqrt((x.shape[1] - prefix) * height / width))
    patches = x[:, prefix:].float().transpose(1, 2).reshape(len(x), x.shape[2], rows, -1)
    pooled = F.adaptive_avg_pool2d(patches, cells(spec)).flatten(2).transpose(1, 2)
    return F.layer_norm(torch.cat([x[:, :prefix].float(), pooled], dim=1), (x.shape[2],))
