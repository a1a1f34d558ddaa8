"""`Vit`: a Program as a torch module, for scoring, gate training and reference outputs.

Shapes: B images, N tokens, D = dim, H heads, E = head_dim, L branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgevit.program.macs import rows_out
from edgevit.program.spec import BranchSpec, ImageSpec, ProgramSpec, StemKind, shift_name
from edgevit.program.tokens import merge_at
from edgevit.torch_form import attention, ffn, gate, head, patch_stem, t2t_stem, tokens
from edgevit.torch_form.layers import Layers, Tap

Decide = Callable[[int, Tensor], Tensor]
Watch = Callable[[int, Tensor], None]
Count = Callable[[Tensor], None]

STEMS: Mapping[StemKind, Callable[[Layers, Tensor, Tap | None], Tensor]] = {
    "patch": patch_stem.embed,
    "t2t_performer": t2t_stem.embed,
    "t2t_transformer": t2t_stem.embed,
}


class Walk(NamedTuple):
    """The stream `[B, N, D]` after all branches, how many patches each token stands for, and how many there were.

    `tokens`: patch tokens left after every point where they merge, int32 `[B, points]`.
    """

    x: Tensor
    sizes: tokens.Sizes
    tokens: Tensor


class Answer(NamedTuple):
    """What a device's run gives, for every image: logits `[B, classes]`, gates `[B, L]`, tokens `[B, points]`."""

    logits: Tensor
    gates: Tensor
    tokens: Tensor


class Vit(Layers):
    """A Program's function on normalised images `[B, 3, height, width]`; parameters carry the Program's array names.

    `forward(images, decide=None, tap=None, watch=None, count=None)`:
      decide(index, x) -> gate values `[B]` or a scalar tensor, 1 = open, called for every gated branch with the stream
        `[B, N, D]` before it (merged tokens weighed, see `tokens.weighed`); None means all gates open. A branch's
        output is `x + g f(x) + (1 - g) skip`.
      tap(name, value) -> value is called with every Linear's input (`b00_mhsa.qkv`, ...) and may replace it.
      watch(index, x) is called with the stream before every branch; a token that was merged stands at every patch it
        is made of.
      count(left) is called with the patch tokens left after every point where they merge, `[B, points]`, of smaller
        images as many times more as their patches are fewer.
      images: may be smaller than the Program's, in whole patches; positions are then resampled (patch stems only), and
        as large a part of the tokens is merged.
      trim: leave out the token rows that nothing reads (`macs.rows_out`), as the lowered graph does.
      effort: moves the thresholds of merges; gates have theirs from `decide`. `answer` moves both, as a device does.

    Where the number of tokens follows the image, rows at the end of the stream may stand for no token (`tokens`).
    """

    def stem(self, images: Tensor, tap: Tap | None = None) -> Tensor:
        """Map images `[B, 3, height, width]` to the residual stream `[B, N, D]`."""
        x = STEMS[self.spec.stem.kind](self, images, tap)
        x = torch.cat([self.array("stem.prefix").expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm("stem.norm", x) if self.spec.stem.norm else x

    def branch(self, branch: BranchSpec, x: Tensor, tap: Tap | None = None, sizes: tokens.Sizes = None) -> Tensor:
        """Return f(norm(x)) of one branch, `[B, N, D]`; zeros where nothing is left of it."""
        if branch.removed:
            return torch.zeros_like(x)
        if branch.kind == "ffn":
            return ffn.ffn(self, branch, x, tap)
        return attention.mhsa(self, branch, x, tap, None, sizes)

    def skip_rows(self, branch: BranchSpec) -> Tensor:
        """Return what is added when the branch does not run: `[N, D]`, zeros without skip rows."""
        return gate.skipped(self, branch)

    def gate_logit(self, branch: BranchSpec, x: Tensor) -> Tensor:
        """Return the gate's logit for every image, `[B]`; open when logit + effort > threshold."""
        return gate.gate(self, branch, x)

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
        effort: float = 0.0,
    ) -> Tensor:
        """All branches in order on the stream `[B, N, D]`; trimmed, only the rows that are read later are left."""
        return self.walk(x, decide, tap, watch, trim=trim, effort=effort).x

    def walk(
        self,
        x: Tensor,
        decide: Decide | None = None,
        tap: Tap | None = None,
        watch: Watch | None = None,
        *,
        trim: bool = False,
        effort: float = 0.0,
        start: int = 0,
        stop: int | None = None,
        sizes: tokens.Sizes = None,
    ) -> Walk:
        """Return what `blocks` does, with the sizes and the number of its tokens.

        `start` and `stop` are the first branch and the one after the last; a stream that begins later has `sizes`.
        """
        left, prefix = rows_out(self.spec), self.spec.stem.prefix
        went: Tensor | None = None
        share = 1.0 if start else (x.shape[1] - prefix) / self.spec.patches
        counts = [torch.empty(len(x), 0, dtype=torch.int32, device=x.device)]
        for index, branch in list(enumerate(self.spec.branches))[start:stop]:
            if watch is not None:
                watch(index, x if went is None or x.shape[1] <= prefix else tokens.unmerged(x, went, prefix))
            rows = min(left[index], x.shape[1]) if trim else x.shape[1]
            g = None
            if decide is not None and branch.gate is not None:
                g = decide(index, tokens.weighed(x, sizes, prefix)).reshape(-1, 1, 1)
            skip = self.skip_rows(branch)[:rows] if branch.skip else 0.0
            read, x = x, x[:, :rows]
            if branch.removed:
                x = x + skip
            else:
                if branch.kind == "ffn":
                    y = ffn.ffn(self, branch, x, tap)
                else:
                    y = attention.mhsa(self, branch, read, tap, rows if rows < read.shape[1] else None, sizes)
                x = x + (y if g is None else g * y + (1 - g) * skip)
            if (point := merge_at(self.spec, branch.name)) is not None:
                shift = self.array(shift_name(point)) if point.shift else None
                # Pairs are chosen in float, as a device does.
                with torch.autocast(x.device.type, enabled=False):
                    x, sizes, to = tokens.merge_traced(x, sizes, point, self.spec, effort, shift, share)
                went = to if went is None else to.gather(1, went)
                counts.append(tokens.patches_left(sizes, prefix)[:, None])
        return Walk(x, sizes, torch.cat(counts, dim=1))

    def head(self, x: Tensor, tap: Tap | None = None, sizes: tokens.Sizes = None) -> Tensor:
        """Map stream `[B, N, D]` to logits `[B, classes]`."""
        return head.head(self, x, tap, sizes)

    def forward(
        self,
        images: Tensor,
        decide: Decide | None = None,
        tap: Tap | None = None,
        watch: Watch | None = None,
        count: Count | None = None,
        *,
        trim: bool = False,
        effort: float = 0.0,
    ) -> Tensor:
        stream = self.stem(images, tap)
        x, sizes, left = self.walk(stream, decide, tap, watch, trim=trim, effort=effort)
        if count is not None:
            count(left * (self.spec.patches / (stream.shape[1] - self.spec.stem.prefix)))
        return self.head(x, tap, sizes)

    def answer(self, images: Tensor, effort: float = 0.0) -> Answer:
        """Return what a device says of normalised images: every one by itself, gates and merges moved by `effort`."""
        hard, opened = self.hard_gates(effort), {}

        def decide(index: int, x: Tensor) -> Tensor:
            opened[index] = hard(index, x)
            return opened[index]

        x, sizes, left = self.walk(self.stem(images), decide, trim=True, effort=effort)
        ran = [x.new_full((len(x),), not branch.removed) for branch in self.spec.branches]
        gates = [opened.get(index, state) for index, state in enumerate(ran)]
        states = torch.stack(gates, dim=1) if gates else x.new_empty(len(x), 0)
        return Answer(self.head(x, None, sizes), states.to(torch.uint8), left)


def normalise(spec: ProgramSpec, images: np.ndarray) -> Tensor:
    """Map uint8 RGB `[B, height, width, 3]` to what `Vit` takes: float32 `[B, 3, height, width]`."""
    return normalise_pixels(spec.image, images)


def normalise_pixels(image: ImageSpec, images: np.ndarray) -> Tensor:
    """`normalise` where there is no Program: uint8 `[B, height, width, 3]` to float32 `[B, 3, height, width]`."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0
    mean, std = torch.tensor(image.mean), torch.tensor(image.std)
    return (x - mean[:, None, None]) / std[:, None, None]
