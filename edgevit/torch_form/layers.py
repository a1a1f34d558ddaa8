"""A Program's arrays as parameters, and the layers that its parts are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import ProgramSpec

Tap = Callable[[str, Tensor], Tensor]


class Layers(nn.Module):
    """What every part takes: the spec, the arrays by their names in the Program, Linear and LayerNorm."""

    indicator: Tensor  # [N, prefix + 1]: which skip row a token row gets

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.spec: ProgramSpec = program.spec
        # Dots are not allowed in parameter names; the Program's names never hold "/".
        self.arrays = nn.ParameterDict(
            {n.replace(".", "/"): nn.Parameter(torch.tensor(a.copy())) for n, a in program.weights.items()}
        )
        prefix = self.spec.stem.prefix
        indicator = torch.zeros(self.spec.tokens, prefix + 1)
        indicator[:prefix, :prefix] = torch.eye(prefix)
        indicator[prefix:, prefix] = 1
        self.register_buffer("indicator", indicator, persistent=False)

    def array(self, name: str) -> Tensor:
        parameter: Tensor = self.arrays[name.replace(".", "/")]
        return parameter

    def to_program(self, spec: ProgramSpec | None = None) -> Program:
        """Return the Program of the current parameters (float32)."""
        spec = spec or self.spec
        arrays = {n: self.array(n).detach().float().cpu().numpy().copy() for n in expected_shapes(spec)}
        return Program(spec=spec, weights=arrays)

    def linear(self, name: str, x: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the Linear `name` of `[..., in]`, after `tap` has seen its input."""
        if tap is not None:
            x = tap(name, x)
        return x @ self.array(f"{name}.weight") + self.array(f"{name}.bias")

    def norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        """Return the LayerNorm `name` over the last axis."""
        weight, bias = self.array(f"{name}.weight"), self.array(f"{name}.bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.spec.norm_eps if eps is None else eps)
