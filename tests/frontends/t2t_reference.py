"""T2T-ViT written plainly from the paper (arXiv 2101.11986) with the parameter names of upstream's checkpoints.

An independent second form for comparison: modules, `nn.Unfold` and explicit softmax instead of edgevit's functions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class PerformerStage(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(dim)
        self.kqv, self.proj = nn.Linear(width, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Dropout(0.1))
        self.w = nn.Parameter(
            nn.init.orthogonal_(torch.empty(dim // 2, dim)) * math.sqrt(dim // 2), requires_grad=False
        )
        self.dim = dim

    def phi(self, x: Tensor) -> Tensor:
        rows = [torch.exp(x @ row - (x * x).sum(-1) / 2) for row in self.w]
        return torch.stack(rows, dim=-1) / math.sqrt(len(rows))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = torch.split(self.kqv(self.norm1(x)), self.dim, dim=-1)
        # The full T x T matrix of kernel values, where the fast form never builds it.
        kernel = torch.einsum("btm,bsm->bts", self.phi(q), self.phi(k))
        y = v + self.proj(kernel @ v / (kernel.sum(-1, keepdim=True) + 1e-8))
        result: Tensor = y + self.mlp(self.norm2(y))
        return result


class Attention(nn.Module):
    """Multi-head attention; `value_skip` adds the values, as the token-to-token stages do."""

    def __init__(self, width: int, dim: int, heads: int, scale: float, value_skip: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.heads, self.scale, self.value_skip = heads, scale, value_skip

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        parts = []
        for qh, kh, vh in zip(*(t.chunk(self.heads, dim=-1) for t in (q, k, v)), strict=True):
            parts.append(torch.softmax(self.scale * qh @ kh.transpose(1, 2), dim=-1) @ vh)
        y: Tensor = self.proj(torch.cat(parts, dim=-1))
        return y + v if self.value_skip else y


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.act(self.fc1(x)))
        return result


class TransformerStage(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(dim)
        # Upstream scales by the width of the stage's input, though queries have `dim` columns.
        self.attn, self.mlp = Attention(width, dim, 1, width**-0.5, value_skip=True), Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(x))
        result: Tensor = y + self.mlp(self.norm2(y))
        return result


class TokensToToken(nn.Module):
    def __init__(self, stage: Any, dim: int, token_dim: int = 64) -> None:
        super().__init__()
        self.split0 = nn.Unfold(7, stride=4, padding=2)
        self.split1 = nn.Unfold(3, stride=2, padding=1)
        self.split2 = nn.Unfold(3, stride=2, padding=1)
        self.attention1, self.attention2 = stage(147, token_dim), stage(9 * token_dim, token_dim)
        self.project = nn.Linear(9 * token_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 4, x.shape[3] // 4
        x = self.attention1(self.split0(x).transpose(1, 2))
        x = self.split1(torch.unflatten(x.transpose(1, 2), 2, (height, width)))
        x = self.attention2(x.transpose(1, 2))
        x = self.split2(torch.unflatten(x.transpose(1, 2), 2, (height // 2, width // 2)))
        result: Tensor = self.project(x.transpose(1, 2))
        return result


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, dim, heads, (dim // heads) ** -0.5)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class T2tVit(nn.Module):
    """`performer` or transformer stages; images `[B, 3, height, width]` to logits `[B, classes]`."""

    def __init__(
        self, *, performer: bool, dim: int, depth: int, heads: int, ratio: int, patches: int = 196, classes: int = 1000
    ) -> None:
        super().__init__()
        self.tokens_to_token = TokensToToken(PerformerStage if performer else TransformerStage, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(self.positions(patches + 1, dim), requires_grad=False)
        self.blocks = nn.ModuleList([Block(dim, heads, ratio) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    @staticmethod
    def positions(tokens: int, dim: int) -> Tensor:
        table = torch.zeros(1, tokens, dim)
        for position in range(tokens):
            for column in range(dim):
                angle = position / 10000 ** ((column - column % 2) / dim)
                table[0, position, column] = math.cos(angle) if column % 2 else math.sin(angle)
        return table

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens_to_token(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x)[:, 0])
        return result
