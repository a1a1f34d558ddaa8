"""Merge tokens that are alike, as tensors: bipartite soft matching (Token Merging, Bolya et al., arXiv 2210.09461).

Patch tokens are split into two sets, every other one. Each token of the first finds its most alike in the second, and
the `count` best pairs become one token each, the mean weighed by how many patches stand behind it. Alike is what has a
high cosine between the stream's rows, each minus its mean: the product of their LayerNorms. ToMe compares the keys of
the block's attention, and does no better, but they are missing where that attention is gated,
pruned or gone.

Among equals the token of lower index goes first, in both choices. Shapes: B images, N tokens, D = dim, F and S tokens
of the first and second set, C = count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import MergeSpec, ProgramSpec

Sizes = Tensor | None  # how many patches each token stands for, `[B, N, 1]`; None: one each


def merge(x: Tensor, sizes: Sizes, point: MergeSpec, spec: ProgramSpec) -> tuple[Tensor, Tensor]:
    """Return the stream `[B, N - C, D]` and its sizes: prefix, what is left of the first set in order, the second."""
    prefix = spec.stem.prefix
    weights = x.new_ones(*x.shape[:2], 1) if sizes is None else sizes
    merged, left, into = match(F.layer_norm(x[:, prefix:], (x.shape[-1],), eps=spec.norm_eps), point.count)
    first, second = x[:, prefix::2], x[:, prefix + 1 :: 2]
    first_sizes, second_sizes = weights[:, prefix::2], weights[:, prefix + 1 :: 2]
    # How many patches each token of the second set takes in from each of the first: [B, S, C].
    places = torch.arange(second.shape[1], device=x.device)
    taken = (places[None, :, None] == into[:, None, :]) * pick(first_sizes, merged).transpose(1, 2)
    sums = second_sizes + taken.sum(dim=2, keepdim=True)
    means = (second * second_sizes + taken @ pick(first, merged)) / sums
    return (
        torch.cat([x[:, :prefix], pick(first, left), means], dim=1),
        torch.cat([weights[:, :prefix], pick(first_sizes, left), sums], dim=1),
    )


def match(tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pair patch tokens `[B, N, D]` by their products.

    Returns places in the first set of those that are merged `[B, C]`, best first, and of those that are left
    `[B, F - C]`, in order; and the places `[B, C]` in the second set that the merged ones go into.
    """
    scores = tokens[:, 0::2] @ tokens[:, 1::2].transpose(1, 2)
    best, into = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, left = order[:, :count], order[:, count:].sort(dim=-1).values
    return merged, left, into.gather(1, merged)


def pick(rows: Tensor, places: Tensor) -> Tensor:
    """Return the rows of `[B, N, D]` at `places` `[B, C]`."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))


def key_bias(sizes: Sizes) -> Tensor | None:
    """Return what attention adds to the scores of every key, `[B, 1, 1, N]`: log(size)."""
    return None if sizes is None else sizes.log().transpose(1, 2)[:, None]


def weighed(x: Tensor, sizes: Sizes, prefix: int) -> Tensor:
    """Scale patch rows of `[B, N, D]` so that their plain mean is the mean over patches; prefix rows stay."""
    if sizes is None:
        return x
    patches = sizes[:, prefix:]
    scale = torch.cat([sizes[:, :prefix], patches / patches.mean(dim=1, keepdim=True)], dim=1)
    return x * scale[:, : x.shape[1]]
