"""What a model is given: an image, and with gates an effort."""

from __future__ import annotations

import math

import numpy as np

from edgevit.errors import ImagesError


def feed(image: np.ndarray, effort: float, *, shape: tuple[int, ...], gated: bool) -> dict[str, np.ndarray]:
    """Build a model's inputs; refuse what a runtime would refuse in its own words, or silently convert.

    Raises:
        ImagesError: not uint8, or another shape than the model's.
        ValueError: `effort` is nan.
    """
    if image.dtype != np.uint8 or image.shape != shape:
        raise ImagesError(
            f"the model takes a uint8 RGB image of shape {list(shape)}, got {image.dtype} {list(image.shape)}; "
            "resize and crop as the manifest's preprocessing says"
        )
    if math.isnan(effort):
        raise ValueError("effort must be a number, got nan")
    inputs = {"image": image}
    if gated:
        inputs["effort"] = np.array(effort, dtype=np.float32)
    return inputs
