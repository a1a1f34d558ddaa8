"""T2T-ViT's stem (arXiv 2101.11986): soft splits and two token-to-token attention stages.

Soft split 7x7 stride 4, token-to-token attention, soft split 3x3 stride 2, attention, soft split 3x3 stride 2, Linear.
Shapes: B images, T tokens of a stage, C columns of its input, K = token_dim, m = K / 2 random features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.torch_form.layers import Layers, Tap

# The performer's guard against division by zero.
TINY = 1e-8


def embed(model: Layers, images: Tensor, tap: Tap | None) -> Tensor:
    """Map images `[B, 3, height, width]` to `[B, patches, D]` with positions."""
    return model.linear("stem", t2t_tokens(model, images), tap) + model.array("stem.pos")


def t2t_tokens(model: Layers, images: Tensor) -> Tensor:
    """Map normalised images `[B, 3, height, width]` to `[B, patches, 9 K]`, everything before the stem's Linear."""
    rows, columns = model.spec.image.height // 4, model.spec.image.width // 4
    x = soft_split(images, kernel=7, stride=4, padding=2)
    for name in ("stem.attention1", "stem.attention2"):
        x = _stage(model, name, x)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        x = soft_split(x, kernel=3, stride=2, padding=1)
        rows, columns = rows // 2, columns // 2
    return x


def soft_split(x: Tensor, *, kernel: int, stride: int, padding: int) -> Tensor:
    """Return windows of `[B, c, height, width]` as tokens `[B, T, kernel * kernel * c]`, by (row, column, channel)."""
    windows = F.unfold(x, kernel, padding=padding, stride=stride)
    batch, channels = x.shape[:2]
    return windows.reshape(batch, channels, kernel * kernel, -1).permute(0, 3, 2, 1).flatten(2)


def _stage(model: Layers, name: str, x: Tensor) -> Tensor:
    """Return one token-to-token stage, `[B, T, C]` to `[B, T, K]`; its skip adds the values, as C differs from K."""
    q, k, v = model.linear(f"{name}.qkv", model.norm(f"{name}.norm1", x)).chunk(3, dim=-1)
    if model.spec.stem.kind == "t2t_performer":
        attended = performer_attention(q, k, v, model.array(f"{name}.w"))
    else:
        attended = F.scaled_dot_product_attention(q, k, v, scale=model.spec.stem.token_dim**-0.5)
    y = v + model.linear(f"{name}.proj", attended)
    hidden = F.gelu(model.linear(f"{name}.fc1", model.norm(f"{name}.norm2", y)))
    return y + model.linear(f"{name}.fc2", hidden)


def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Return linear attention with positive random features `w [m, K]` (Performer, arXiv 2009.14794), `[B, T, K]`."""
    qp, kp = _features(q, w), _features(k, w)
    divisor = qp @ kp.sum(dim=1).unsqueeze(-1)
    return qp @ (kp.transpose(1, 2) @ v) / (divisor + TINY)


def _features(x: Tensor, w: Tensor) -> Tensor:
    """Return exp(x w^T - |x|^2 / 2) / sqrt(m)."""
    return torch.exp(x @ w.T - x.square().sum(dim=-1, keepdim=True) / 2) / math.sqrt(w.shape[0])
