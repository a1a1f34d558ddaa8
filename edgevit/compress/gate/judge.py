"""What a gated Program answers at a batch size: one decision per gate for every batch, as on a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.gate.threshold import expected_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import track

CHUNK = 250


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Logits `[n, classes]`, which branches ran for every image (bool `[n, branches]`), and mean MACs per image."""

    logits: np.ndarray
    ran: np.ndarray
    macs: float

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
    logits, ran = [], []
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

        logits.append(model(chunk, decide if spec.gated else None).numpy())
        ran.append(rows)
    everything = np.concatenate(ran)
    return Answers(logits=np.concatenate(logits), ran=everything, macs=expected_macs(spec, everything))
