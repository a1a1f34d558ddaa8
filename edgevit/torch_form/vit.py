"""`Vit`: a Program as a torch module, for scoring, gate training and reference outputs.

Shapes: B images, N tokens, D = dim, H heads, E = head_dim, L branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.frontends.t2t import t2t_tokens
from edgevit.program.macs import rows_out
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import BranchSpec, ImageSpec, ProgramSpec
from edgevit.program.tokens import merge_at
from edgevit.torch_form import tokens

Decide = Callable[[int, Tensor], Tensor]
Tap = Callable[[str, Tensor], Tensor]
Watch = Callable[[int, Tensor], None]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


class Vit(nn.Module):
    """A Program's function on normalised images `[B, 3, height, width]`; parameters carry the Program's array names.

    `forward(images, decide=None, tap=None, watch=None)`:
      decide(index, x) -> gate values `[B]` or a scalar tensor, 1 = open, called for every gated branch with the stream
        `[B, N, D]` before it (merged tokens weighed, see `tokens.weighed`); None means all gates open. A branch's
        output is `x + g f(x) + (1 - g) skip`.
      tap(name, value) -> value is called with every Linear's input (`b00_mhsa.qkv`, ...) and may replace it.
      watch(index, x) is called with the stream before every branch.
      images: may be smaller than the Program's, in whole patches; positions are then resampled (patch stems only).
      trim: leave out the token rows that nothing reads (`macs.rows_out`), as the lowered graph does.
    """

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

    def linear(self, name: str, x: Tensor, tap: Tap | None) -> Tensor:
        if tap is not None:
            x = tap(name, x)
        return x @ self.array(f"{name}.weight") + self.array(f"{name}.bias")

    def norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        weight, bias = self.array(f"{name}.weight"), self.array(f"{name}.bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.spec.norm_eps if eps is None else eps)

    def stem(self, images: Tensor, tap: Tap | None = None) -> Tensor:
        """Map images `[B, 3, height, width]` to the residual stream `[B, N, D]`."""
        stem = self.spec.stem
        if stem.kind == "patch":
            p = stem.patch
            rows, columns = images.shape[2] // p, images.shape[3] // p
            x = images.reshape(-1, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
            x = x.reshape(-1, rows * columns, p * p * 3)
        else:
            rows, columns = self.spec.grid
            x = t2t_tokens(self.spec, self.array, images)
        x = self.linear("stem", x, tap) + self.positions(rows, columns)
        x = torch.cat([self.array("stem.prefix").expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm("stem.norm", x) if stem.norm else x

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding `[rows * columns, D]`, resampled as timm does for a grid that is not the Program's."""
        pos = self.array("stem.pos")
        if (rows, columns) == self.spec.grid:
            return pos
        grid = pos.reshape(1, *self.spec.grid, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        return grid.permute(0, 2, 3, 1).reshape(rows * columns, -1)

    def mhsa(
        self,
        branch: BranchSpec,
        x: Tensor,
        tap: Tap | None = None,
        rows: int | None = None,
        sizes: tokens.Sizes = None,
    ) -> Tensor:
        b = len(x)
        normed = self.norm(f"{branch.name}.norm", x)
        if rows is None:
            parts = self.linear(f"{branch.name}.qkv", normed, tap).chunk(3, dim=-1)
        else:
            weight, bias = self.array(f"{branch.name}.qkv.weight"), self.array(f"{branch.name}.qkv.bias")
            width = branch.width
            keys_and_values = normed @ weight[:, width:] + bias[width:]
            parts = (normed[:, :rows] @ weight[:, :width] + bias[:width], *keys_and_values.chunk(2, dim=-1))
        q, k, v = (p.reshape(b, -1, branch.units, branch.head_dim).transpose(1, 2) for p in parts)
        if branch.qk_norm:
            q = self.norm(f"{branch.name}.q_norm", q, self.spec.qk_norm_eps)
            k = self.norm(f"{branch.name}.k_norm", k, self.spec.qk_norm_eps)
        out = F.scaled_dot_product_attention(q, k, v, tokens.key_bias(sizes), scale=branch.scale)
        return self.linear(f"{branch.name}.proj", out.transpose(1, 2).reshape(b, -1, branch.width), tap)

    def ffn(self, branch: BranchSpec, x: Tensor, tap: Tap | None = None) -> Tensor:
        hidden = self.linear(f"{branch.name}.fc1", self.norm(f"{branch.name}.norm", x), tap)
        return self.linear(f"{branch.name}.fc2", ACTIVATIONS[branch.activation](hidden), tap)

    def branch(self, branch: BranchSpec, x: Tensor, tap: Tap | None = None) -> Tensor:
        """Return f(norm(x)) of one branch, `[B, N, D]`; zeros where nothing is left of it."""
        if branch.removed:
            return torch.zeros_like(x)
        return self.mhsa(branch, x, tap) if branch.kind == "mhsa" else self.ffn(branch, x, tap)

    def skip_rows(self, branch: BranchSpec) -> Tensor:
        """Return what is added when the branch does not run: `[N, D]`, zeros without skip rows."""
        if not branch.skip:
            return self.indicator.new_zeros(self.spec.tokens, self.spec.dim)
        return self.indicator @ self.array(f"{branch.name}.skip")

    def gate_logit(self, branch: BranchSpec, x: Tensor) -> Tensor:
        """Return the gate's logit for every image, `[B]`; open when logit + effort > threshold."""
        assert branch.gate is not None
        pooled = x[:, 0] if branch.gate.pool == "prefix" else x[:, self.spec.stem.prefix :].mean(dim=1)
        pooled = F.layer_norm(pooled, (pooled.shape[-1],), eps=self.spec.norm_eps)
        return pooled @ self.array(f"{branch.name}.gate.weight") + self.array(f"{branch.name}.gate.bias")

    def hard_gates(self, effort: float = 0.0) -> Decide:
        """Return the decision a device makes: every image by itself, open where logit + effort > threshold."""

        def decide(index: int, x: Tensor) -> Tensor:
            branch = self.spec.branches[index]
            assert branch.gate is not None
            return (self.gate_logit(branch, x) + effort > branch.gate.threshold).to(x.dtype)

        return decide

    def blocks(
        self,
        x: Tensor,
        decide: Decide | None = None,
        tap: Tap | None = None,
        watch: Watch | None = None,
        *,
        trim: bool = False,
    ) -> Tensor:
        """All branches in order on the stream `[B, N, D]`; trimmed, only the rows that are read later are left."""
        return self.walk(x, decide, tap, watch, trim=trim)[0]

    def walk(
        self,
        x: Tensor,
        decide: Decide | None = None,
        tap: Tap | None = None,
        watch: Watch | None = None,
        *,
        trim: bool = False,
    ) -> tuple[Tensor, tokens.Sizes]:
        """Return what `blocks` does, and how many patches each of its tokens stands for."""
        left = rows_out(self.spec)
        sizes: tokens.Sizes = None
        for index, branch in enumerate(self.spec.branches):
            if watch is not None:
                watch(index, x)
            rows = min(left[index], x.shape[1]) if trim else x.shape[1]
            g = None
            if decide is not None and branch.gate is not None:
                g = decide(index, tokens.weighed(x, sizes, self.spec.stem.prefix)).reshape(-1, 1, 1)
            skip = self.skip_rows(branch)[:rows] if branch.skip else 0.0
            read, x = x, x[:, :rows]
            if branch.removed:
                x = x + skip
            else:
                if branch.kind == "ffn":
                    y = self.ffn(branch, x, tap)
                else:
                    y = self.mhsa(branch, read, tap, rows if rows < read.shape[1] else None, sizes)
                x = x + (y if g is None else g * y + (1 - g) * skip)
            if (point := merge_at(self.spec, branch.name)) is not None:
                x, sizes = tokens.merge(x, sizes, point, self.spec)
        return x, sizes

    def head(self, x: Tensor, tap: Tap | None = None, sizes: tokens.Sizes = None) -> Tensor:
        """Map stream `[B, N, D]` to logits `[B, classes]`."""
        head = self.spec.head
        if head.norm:
            x = self.norm("head.norm", x)
        x = tokens.weighed(x, sizes, self.spec.stem.prefix)
        pooled = x[:, : head.prefix].flatten(1) if head.pool == "prefix" else x[:, self.spec.stem.prefix :].mean(dim=1)
        if head.pooled_norm:
            pooled = self.norm("head.pooled_norm", pooled)
        return self.linear("head", pooled, tap) if head.linear else pooled

    def forward(
        self,
        images: Tensor,
        decide: Decide | None = None,
        tap: Tap | None = None,
        watch: Watch | None = None,
        *,
        trim: bool = False,
    ) -> Tensor:
        x, sizes = self.walk(self.stem(images, tap), decide, tap, watch, trim=trim)
        return self.head(x, tap, sizes)


def normalise(spec: ProgramSpec, images: np.ndarray) -> Tensor:
    """Map uint8 RGB `[B, height, width, 3]` to what `Vit` takes: float32 `[B, 3, height, width]`."""
    return normalise_pixels(spec.image, images)


def normalise_pixels(image: ImageSpec, images: np.ndarray) -> Tensor:
    """`normalise` where there is no Program: uint8 `[B, height, width, 3]` to float32 `[B, 3, height, width]`."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0
    mean, std = torch.tensor(image.mean), torch.tensor(image.std)
    return (x - mean[:, None, None]) / std[:, None, None]
