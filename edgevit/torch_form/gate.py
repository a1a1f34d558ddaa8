"""A branch's gate, and what is added to the stream where the branch does not run."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import BranchSpec
from edgevit.torch_form.layers import Layers


def gate(model: Layers, branch: BranchSpec, x: Tensor) -> Tensor:
    """Return the gate's logit for every image of the stream `[B, N, D]`: `[B]`, LN(pool(x)) . weight + bias."""
    assert branch.gate is not None
    pooled = x[:, 0] if branch.gate.pool == "prefix" else x[:, model.spec.stem.prefix :].mean(dim=1)
    pooled = F.layer_norm(pooled, (pooled.shape[-1],), eps=model.spec.norm_eps)
    return pooled @ model.array(f"{branch.name}.gate.weight") + model.array(f"{branch.name}.gate.bias")


def skipped(model: Layers, branch: BranchSpec) -> Tensor:
    """Return what is added when the branch does not run: `[N, D]`, zeros without skip rows."""
    if not branch.skip:
        return model.indicator.new_zeros(model.spec.tokens, model.spec.dim)
    return model.indicator @ model.array(f"{branch.name}.skip")
