"""A Program in PyTorch, one image at a time, as it runs while it is trained: what a build is timed against."""

from __future__ import annotations

import numpy as np
import torch

from edgevit.backends import NO_TOKENS, Answer
from edgevit.program.program import Program
from edgevit.torch_form.vit import Vit, normalise


class Eager:
    """The Program with all gates open, on the processor with so many threads (of the whole process)."""

    def __init__(self, program: Program, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._spec, self._model = program.spec, Vit(program).eval()

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return logits float32 `[1, classes]` of an image uint8 `[1, height, width, 3]`, and that all branches ran."""
        return self.answer(image, effort)[:2]

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        """Return the same, and that no number of tokens is told."""
        with torch.inference_mode():
            logits = self._model(normalise(self._spec, image))
        return Answer(logits.numpy(), np.ones(len(self._spec.branches), dtype=np.uint8), NO_TOKENS)

    def close(self) -> None:
        """Nothing: it goes with its last reference."""
