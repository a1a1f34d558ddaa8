"""What a gated Program answers at a batch size: one decision per gate for every batch, as on a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.gate.threshold import image_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import track

CHUNK = 250


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Logits `[n, classes]`, which branches ran for every image (bool `[n, branches]`), and MACs.

    `left` are the patch tokens after every point where they merge, `[n, points]`, `image_macs` the MACs of every image.
    """

    logits: np.ndarray
    ran: np.ndarray
    left: np.ndarray
    image_macs: np.ndarray

    @property
    def macs(self) -> float:
        """Return mean MACs per image."""
        return float(self.image_macs.mean())

    def top1(self, labels: np.ndarray) -> float:
        """Return the share of images whose largest logit is their label's."""
        return float((self.logits.argmax(axis=1) == labels).mean())


@torch.no_grad()
def answers(program: Program, images: np.ndarray, *, batch: int = 1, description: str = "Evaluating") -> Answers:
    """Run uint8 images `[n, height, width, 3]` in order, in batches of `batch`; the last one may be smaller.

    A batch opens a gate when the mean of its logits is above the threshold.
    """
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    size = batch * max(1, CHUNK // batch)
    logits, ran, left = [], [], list[np.ndarray]()
    for chunk in track(batches(spec, images, size), description):
        groups = torch.arange(len(chunk)) // batch
        count = torch.bincount(groups)
        rows = np.tile([not b.removed for b in spec.branches], (len(chunk), 1))

        def decide(
            index: int, x: Tensor, groups: Tensor = groups, count: Tensor = count, rows: np.ndarray = rows
        ) -> Tensor:
            branch = spec.branches[index]
            assert branch.gate is not None
            means = torch.zeros(len(count)).index_add(0, groups, model.gate_logit(branch, x)) / count
            opened = (means > branch.gate.threshold)[groups]
            rows[:, index] = opened.numpy()
            return opened.to(x.dtype)

        walked = model.walk(model.stem(chunk), decide if spec.gated else None, trim=True)
        logits.append(model.head(walked.x, sizes=walked.sizes).numpy())
        left.append(walked.tokens.numpy())
        ran.append(rows)
    every, tokens = np.concatenate(ran), np.concatenate(left).astype(np.int64)
    macs = image_macs(spec, every, tokens)
    return Answers(logits=np.concatenate(logits), ran=every, left=tokens, image_macs=macs)
