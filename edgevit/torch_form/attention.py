"""Multi-head self-attention of a branch. Shapes: B images, N tokens, D = dim, H heads, E = head_dim, W = H * E."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import BranchSpec
from edgevit.torch_form import tokens
from edgevit.torch_form.layers import Layers, Tap


def mhsa(
    model: Layers,
    branch: BranchSpec,
    x: Tensor,
    tap: Tap | None = None,
    rows: int | None = None,
    sizes: tokens.Sizes = None,
) -> Tensor:
    """Return f(norm(x)) of the stream `[B, N, D]`, or of its first `rows` where only they are read later."""
    b = len(x)
    normed = model.norm(f"{branch.name}.norm", x)
    if rows is None:
        parts = model.linear(f"{branch.name}.qkv", normed, tap).chunk(3, dim=-1)
    else:
        weight, bias = model.array(f"{branch.name}.qkv.weight"), model.array(f"{branch.name}.qkv.bias")
        width = branch.width
        keys_and_values = normed @ weight[:, width:] + bias[width:]
        parts = (normed[:, :rows] @ weight[:, :width] + bias[:width], *keys_and_values.chunk(2, dim=-1))
    q, k, v = (p.reshape(b, -1, branch.units, branch.head_dim).transpose(1, 2) for p in parts)
    if branch.qk_norm:
        q = model.norm(f"{branch.name}.q_norm", q, model.spec.qk_norm_eps)
        k = model.norm(f"{branch.name}.k_norm", k, model.spec.qk_norm_eps)
    out = F.scaled_dot_product_attention(q, k, v, tokens.key_bias(sizes), scale=branch.scale)
    return model.linear(f"{branch.name}.proj", out.transpose(1, 2).reshape(b, -1, branch.width), tap)
