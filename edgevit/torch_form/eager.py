"""A Program in PyTorch, one image at a time, as it runs while it is trained: what a build is timed against."""

from __future__ import annotations

import numpy as np
import torch

from edgevit.program.program import Program
from edgevit.torch_form.vit import Vit, normalise


class Eager:
    """The Program with all gates open, on the processor with so many threads (of the whole process)."""

    def __init__(self, program: Program, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self.spec, self._model = program.spec, Vit(program).eval()

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Return logits float32 `[1, classes]` of an image uint8 `[1, height, width, 3]`."""
        with torch.inference_mode():
            logits: np.ndarray = self._model(normalise(self.spec, image)).numpy()
        return logits
