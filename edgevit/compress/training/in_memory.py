"""Unlabelled calibration images as a source of training batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edgevit.images.match import UNLABELLED
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.vit import normalise


class InMemory:
    """Batches of prepared images, every other batch mirrored on average.

    Order and mirroring are functions of (seed, epoch). The last batch of an epoch may be smaller: of few images none is
    left out.

    Args:
        spec: the model's, for its input.
        images: uint8 `[n, height, width, 3]`.
        batch: images of a step.
        seed: of order and mirroring.
    """

    def __init__(self, spec: ProgramSpec, images: np.ndarray, *, batch: int, seed: int) -> None:
        self.steps = math.ceil(len(images) / batch)
        self._spec, self._images, self._batch, self._seed = spec, images, batch, seed

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from step `start` on.

        Yields:
            images float32 `[<= batch, 3, height, width]`, normalised, and labels int64 `[<= batch]`, all unlabelled.
        """
        rng = np.random.default_rng([self._seed, epoch])
        order, mirrored = rng.permutation(len(self._images)), rng.random(self.steps) < 0.5
        for step in range(start, self.steps):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            pixels = self._images[chosen]
            seen = normalise(self._spec, pixels[:, :, ::-1] if mirrored[step] else pixels)
            yield seen, torch.full((len(chosen),), UNLABELLED)
