"""How far a cheaper Program's logits are from those of the dense model, without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.vit import Vit


@torch.no_grad()
def logits(model: Vit, batch: Tensor) -> Tensor:
    """Return the logits `[B, classes]` of a batch of `stream.batches`, all gates open."""
    return model(batch, trim=True)  # type: ignore[no-any-return]


def drift(spec: ProgramSpec, expected: Tensor, got: Tensor) -> float:
    """Return the mean of `drifts`."""
    return float(drifts(spec, expected, got).mean())


def drifts(spec: ProgramSpec, expected: Tensor, got: Tensor) -> Tensor:
    """Return the KL divergence of `got` from `expected`, `[n, classes]`, in nats, of every image: `[n]`.

    Of scores that decide between no classes it is the mean squared difference over their variance.
    """
    if not spec.head.decides:
        return (expected - got).square().mean(dim=1) / expected.var(correction=0).clamp_min(1e-12)
    target = F.log_softmax(expected, dim=-1)
    return F.kl_div(F.log_softmax(got, dim=-1), target, reduction="none", log_target=True).sum(dim=1)
