"""Keep tokens that matter from being merged: a row for every point, fitted in closed form on unlabelled images.

Merging two tokens changes the logits by about as much as they differ, times how much is read of them later. How much
that is can be told from a token itself: the logarithm of the attention that the head's tokens give it in all later
blocks, and of its squared length, is all but linear in its normalised row (R2 0.7 to 0.9 on the tiny models). So
`u = row . w + b` is fitted, and pairs are ranked by cosine - GUARD (u + u'), which is a product of rows again: of those
less GUARD D w. Against ToMe's ranking that halves the drift at equal MACs (reports/reference/token-rules.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.torch_form.stream import accumulate, step_branch
from edgevit.torch_form.vit import Vit

GUARD_IMAGES = 128
GUARD = 0.05  # cosine that a unit of importance is worth, of either token
RIDGE = 1e-2  # of the normalised rows' covariance
FAINTEST = 1e-4  # attention, times the number of tokens, below which nobody looks


@torch.no_grad()
def guards(program: Program, work: list[Tensor]) -> Mapping[str, Tensor]:
    """Return the row `[D]` of a point after every MHSA, by the branch's name, from batches of `stream.batches`.

    Empty where there is no attention that the head reads.
    """
    model, sums = Vit(program).eval(), dict[str, Tensor]()
    for batch in work:
        _observe(model, model.stem(batch), sums)
    found = {}
    for branch in program.spec.branches:
        if f"{branch.name}.count" not in sums:
            continue
        count, rows, value, gram, cross = (
            sums[f"{branch.name}.{part}"] for part in ("count", "rows", "value", "gram", "cross")
        )
        mean = rows / count
        covariance = gram / count - mean[:, None] * mean
        ridge = RIDGE * torch.eye(len(mean), dtype=mean.dtype)
        weight = torch.linalg.solve(covariance + ridge, cross / count - mean * (value / count))
        found[branch.name] = (GUARD * program.spec.dim * weight).float()
    return found


def _observe(model: Vit, x: Tensor, sums: dict[str, Tensor]) -> None:
    """Add to running sums what a fit of every point needs, from the stem's stream `[B, N, D]`."""
    spec, prefix = model.spec, model.spec.stem.prefix
    rows: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    attended: dict[str, Tensor] = {}
    for branch in spec.branches:
        if branch.kind == "mhsa" and not branch.removed:
            attended[branch.name] = attention_to_patches(model, branch, x)
        x = step_branch(model, branch, x)
        if branch.kind == "mhsa":
            patches = x[:, prefix:]
            rows[branch.name] = F.layer_norm(patches, (spec.dim,), eps=spec.norm_eps)
            lengths[branch.name] = patches.square().sum(dim=-1).clamp_min(1e-12).log()
    later, seen = torch.zeros(x.shape[0], spec.patches), 0
    for name in reversed(rows):
        if name in attended:
            later, seen = later + attended[name], seen + 1
        if not seen:
            continue
        z = rows[name].reshape(-1, spec.dim).double()
        y = (2 * later / seen + lengths[name]).reshape(-1).double()
        accumulate(sums, f"{name}.count", torch.tensor(float(len(z))))
        accumulate(sums, f"{name}.rows", z.sum(dim=0))
        accumulate(sums, f"{name}.value", y.sum())
        accumulate(sums, f"{name}.gram", z.T @ z)
        accumulate(sums, f"{name}.cross", z.T @ y)


def attention_to_patches(model: Vit, branch: BranchSpec, x: Tensor) -> Tensor:
    """Return the log of the attention, times their number, that patch tokens get from those that the head reads.

    These are the prefix tokens, or all where the head averages the patches; heads are averaged. Shape `[B, patches]`.
    """
    spec, (b, n, _), prefix = model.spec, x.shape, model.spec.stem.prefix
    asking = spec.head.prefix if spec.head.pool == "prefix" else n
    normed, width = model.norm(f"{branch.name}.norm", x), branch.width
    weight, bias = model.array(f"{branch.name}.qkv.weight"), model.array(f"{branch.name}.qkv.bias")
    q = (normed[:, :asking] @ weight[:, :width] + bias[:width]).reshape(b, asking, branch.units, -1).transpose(1, 2)
    k = (normed @ weight[:, width : 2 * width] + bias[width : 2 * width]).reshape(b, n, branch.units, -1)
    k = k.transpose(1, 2)
    if branch.qk_norm:
        q = model.norm(f"{branch.name}.q_norm", q, spec.qk_norm_eps)
        k = model.norm(f"{branch.name}.k_norm", k, spec.qk_norm_eps)
    given = (branch.scale * q @ k.transpose(2, 3)).softmax(dim=-1)[..., prefix:]
    return (given.mean(dim=(1, 2)) * (n - prefix) + FAINTEST).log()
