"""Real weights and images for tests, found through EDGEVIT_DATA; and random weights that make every part matter."""

from __future__ import annotations

import io
import math
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

DATA = Path(os.environ["EDGEVIT_DATA"]) if os.environ.get("EDGEVIT_DATA") else None
needs_data = pytest.mark.skipif(DATA is None, reason="EDGEVIT_DATA names no folder with real weights and images")


def real_images(count: int, height: int = 224, width: int = 224) -> np.ndarray:
    """The first ImageNet validation images, centre-cropped: uint8 `[count, height, width, 3]`; noise without data."""
    if DATA is None:
        return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images: list[np.ndarray] = []
    with tarfile.open(DATA / "imagenet-val-1000.tar") as archive:
        for member in archive:
            if len(images) == count:
                break
            file = archive.extractfile(member) if member.name.lower().endswith((".jpg", ".jpeg")) else None
            if file is not None:
                images.append(_crop(Image.open(io.BytesIO(file.read())).convert("RGB"), height, width))
    return np.stack(images)


def _crop(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The centre, enlarged first where the image is too small."""
    factor = max(1.0, height / image.height, width / image.width)
    if factor > 1:
        size = (math.ceil(image.width * factor), math.ceil(image.height * factor))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def enliven(model: Any, seed: int = 0) -> Any:
    """Random values in every parameter, so scaled that branches, biases, LayerScale and tokens all change the output.

    timm's own initialisation has zero biases, LayerScale of 1e-5 and branches near zero, which would hide faults.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            if name.endswith("_token") or name == "pos_embed":
                value.copy_(draw * 0.5)
            elif value.ndim > 1:
                value.copy_(draw / value[0].numel() ** 0.5)
            elif name.endswith("weight"):
                value.copy_(1 + 0.2 * draw)
            elif name.endswith("gamma"):
                value.copy_(0.7 + 0.2 * draw)
            else:
                value.copy_(0.1 * draw)
    return model.eval()


def outputs(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """The module's output as an array."""
    with torch.no_grad():
        result: np.ndarray = model(images).numpy()
    return result
