"""The feed-forward network of a branch: two Linears around an activation function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.program.spec import BranchSpec
from edgevit.torch_form.layers import Layers, Tap

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def ffn(model: Layers, branch: BranchSpec, x: Tensor, tap: Tap | None = None) -> Tensor:
    """Return f(norm(x)) of the stream `[B, N, D]`."""
    hidden = model.linear(f"{branch.name}.fc1", model.norm(f"{branch.name}.norm", x), tap)
    return model.linear(f"{branch.name}.fc2", ACTIVATIONS[branch.activation](hidden), tap)
