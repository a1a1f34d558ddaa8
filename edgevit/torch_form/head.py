"""The head: pooling, norms and the classifier."""

from __future__ import annotations

from torch import Tensor

from edgevit.torch_form import tokens
from edgevit.torch_form.layers import Layers, Tap


def head(model: Layers, x: Tensor, tap: Tap | None = None, sizes: tokens.Sizes = None) -> Tensor:
    """Map the stream `[B, N, D]` to logits `[B, classes]`."""
    spec = model.spec.head
    if spec.norm:
        x = model.norm("head.norm", x)
    x = tokens.weighed(x, sizes, model.spec.stem.prefix)
    pooled = x[:, : spec.prefix].flatten(1) if spec.pool == "prefix" else x[:, model.spec.stem.prefix :].mean(dim=1)
    if spec.pooled_norm:
        pooled = model.norm("head.pooled_norm", pooled)
    return model.linear("head", pooled, tap) if spec.linear else pooled
