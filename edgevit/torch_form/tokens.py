"""Merge tokens that are alike, as tensors: bipartite soft matching (Token Merging, Bolya et al., arXiv 2210.09461).

Patch tokens are split into two sets, every other one. Each token of the first finds its most alike in the second, and
the best pairs become one token each, the mean weighed by how many patches stand behind it. Alike is what has a
high cosine between the stream's rows, each minus its mean: the product of their LayerNorms. ToMe compares the keys of
the block's attention, and does no better, but they are missing where that attention is gated,
pruned or gone.

Among equals the token of lower index goes first, in both choices. Where the number of pairs follows the image, images
of a batch have as many rows as the one that keeps most; rows that an image does not have stand at its end, stand for 0
patches and are in no sum. Shapes: B images, N tokens, D = dim, F and S tokens of the first and second set, C the most
pairs that an image merges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.program.tokens import MERGE_EFFORT

Sizes = Tensor | None  # how many patches each token stands for, `[B, N, 1]`, 0 = no token; None: one each


class Merged(NamedTuple):
    """A stream `[B, N, D]` after a point, its sizes, and the patch row `[B, patches before]` that each one went to."""

    x: Tensor
    sizes: Tensor
    went: Tensor


def merge(
    x: Tensor,
    sizes: Sizes,
    point: MergeSpec,
    spec: ProgramSpec,
    effort: float = 0.0,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the stream `[B, N, D]` and its sizes after a point: prefix, what is left of the first set, the second.

    `shift` `[D]` is what the point takes from the normalised rows before it compares them. Columns of `x` beyond D take
    no part in the comparison: they are averaged with the rows that they belong to.
    """
    return merge_traced(x, sizes, point, spec, effort, shift)[:2]


def merge_traced(
    x: Tensor,
    sizes: Sizes,
    point: MergeSpec,
    spec: ProgramSpec,
    effort: float = 0.0,
    shift: Tensor | None = None,
    share: float = 1.0,
) -> Merged:
    """Return what `merge` does, and where every patch row went.

    Derivatives flow through the means; which rows become one has none. Images smaller than the Program's have `share`
    of its patches, and as large a share of its pairs is merged.
    """
    prefix = spec.stem.prefix
    weights = x.new_ones(*x.shape[:2], 1) if sizes is None else sizes
    first, second = x[:, prefix::2], x[:, prefix + 1 :: 2]
    first_sizes, second_sizes = weights[:, prefix::2], weights[:, prefix + 1 :: 2]
    best, into = match(rows_to_compare(x, spec, shift), weights[:, prefix:, 0] > 0)
    merged, valid = chosen(best, pairs(best, patches_left(weights, prefix), point, spec, effort, share))
    # How many patches each token of the second set takes in from each that is merged: [B, S, C].
    places = torch.arange(second.shape[1], device=x.device)
    moved = pick(first_sizes, merged) * valid[..., None]
    taken = (places[None, :, None] == into.gather(1, merged)[:, None]) * moved.transpose(1, 2)
    sums = second_sizes + taken.sum(dim=2, keepdim=True)
    means = (second * second_sizes + taken @ pick(first, merged)) / sums.clamp_min(1)
    rows = torch.cat([first, means], dim=1)
    stays = torch.ones_like(best, dtype=torch.bool).scatter(1, merged, ~valid)
    held = torch.cat([first_sizes * stays[..., None], sums], dim=1)
    there = held[..., 0] > 0
    ranks = there.int().argsort(dim=1, descending=True, stable=True)
    order = ranks[:, : int(there.sum(dim=1).max())]
    return Merged(
        torch.cat([x[:, :prefix], pick(rows, order)], dim=1),
        torch.cat([weights[:, :prefix], pick(held, order)], dim=1),
        _went(into, merged, valid, ranks),
    )


def _went(into: Tensor, merged: Tensor, valid: Tensor, ranks: Tensor) -> Tensor:
    """Return the row after a point `[B, F + S]` of every patch row before it, in the order of those before."""
    count, seconds = into.shape[1], ranks.shape[1] - into.shape[1]
    places = torch.arange(ranks.shape[1], device=into.device).expand(len(into), -1)
    first = places[:, :count].scatter(1, merged, torch.where(valid, count + into.gather(1, merged), merged))
    rank = ranks.argsort(dim=1)
    went = torch.empty_like(ranks)
    went[:, 0::2] = rank.gather(1, first)
    went[:, 1::2] = rank[:, count : count + seconds]
    return went


def unmerged(x: Tensor, went: Tensor, prefix: int) -> Tensor:
    """Return a merged stream `[B, N, D]` with a row for every patch again, the one of the token `[B, P]` it went to."""
    return torch.cat([x[:, :prefix], pick(x[:, prefix:], went)], dim=1)


def rows_to_compare(x: Tensor, spec: ProgramSpec, shift: Tensor | None = None) -> Tensor:
    """Return the normalised patch rows of a stream `[B, N, D]`, less the `shift` `[D]` of a point that has one."""
    normed = F.layer_norm(x[:, spec.stem.prefix :, : spec.dim], (spec.dim,), eps=spec.norm_eps)
    return normed if shift is None else normed - shift


def likeness(x: Tensor, sizes: Sizes, spec: ProgramSpec, shift: Tensor | None = None) -> Tensor:
    """Return the product of every token of the first set with its partner, `[B, F]`; -inf where there is no token."""
    prefix = spec.stem.prefix
    there = x.new_ones(x.shape[0], x.shape[1] - prefix) if sizes is None else sizes[:, prefix:, 0]
    return match(rows_to_compare(x, spec, shift), there > 0)[0]


def match(tokens: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Find the most alike of the second set for every token of the first, by the products of `[B, N, D]`.

    `there` `[B, N]` says which tokens there are; those that are not come last. Returns the products `[B, F]`, -inf
    where there is no token, and the partners' places `[B, F]` in the second set.
    """
    scores = tokens[:, 0::2] @ tokens[:, 1::2].transpose(1, 2)
    pairs = there[:, 0::2, None] & there[:, None, 1::2]
    best, into = scores.masked_fill(~pairs, -torch.inf).max(dim=-1)
    return best, into


def pairs(
    best: Tensor, patches: Tensor, point: MergeSpec, spec: ProgramSpec, effort: float = 0.0, share: float = 1.0
) -> Tensor:
    """Return how many pairs are merged in every image, int64 `[B]`: of `share` of the numbers that the point has.

    `best` are products `[B, F]` of normalised rows, `patches` the patch tokens of every image, integers `[B]`.
    """
    least, most, step = int(share * point.fewest), int(share * point.count), max(int(share * point.step), 1)
    if point.threshold is None:
        return torch.full((len(best),), most, device=best.device)
    # A row that LayerNorm gave has the length sqrt(D).
    limit = spec.dim * (point.threshold + MERGE_EFFORT * effort)
    above = (best > limit).sum(dim=1).clamp(max=most)
    past = (spec.stem.prefix + patches.long()) % step if point.whole else 0
    found = (above - (above - past) % step).clamp(min=least)
    return found if point.whole else torch.where(above == most, most, found)


def chosen(best: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return places of the `count` `[B]` best `[B, F]`, best first, `[B, C]` for the largest count, and which count."""
    order = best.argsort(dim=-1, descending=True, stable=True)[:, : int(count.max())]
    return order, torch.arange(order.shape[1], device=best.device) < count[:, None]


def pick(rows: Tensor, places: Tensor) -> Tensor:
    """Return the rows of `[B, N, D]` at `places` `[B, C]`."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))


def patches_left(sizes: Tensor, prefix: int) -> Tensor:
    """Return how many patch tokens every image has, int32 `[B]`."""
    return (sizes[:, prefix:, 0] > 0).sum(dim=1, dtype=torch.int32)


def key_bias(sizes: Sizes) -> Tensor | None:
    """Return what attention adds to the scores of every key, `[B, 1, 1, N]`: log(size), -inf where there is none."""
    return None if sizes is None else sizes.log().transpose(1, 2)[:, None]


def weighed(x: Tensor, sizes: Sizes, prefix: int) -> Tensor:
    """Scale patch rows of `[B, N, D]` so that their plain mean is the mean over patches; prefix rows stay."""
    if sizes is None:
        return x
    patches = sizes[:, prefix:]
    scale = torch.cat([sizes[:, :prefix], patches / patches.mean(dim=1, keepdim=True)], dim=1)
    return x * scale[:, : x.shape[1]]
