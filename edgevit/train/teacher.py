"""The dense model's outputs, kept on disk for runs that see the same views: a quarter of a step's time is the teacher.

Order and augmentation are functions of the seed, so runs with other budgets, groups or stages meet the same batches.
A batch is known by its pixels, so nothing has to be told when a recipe changes.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import OutputError
from edgevit.models.vit import Vit
from edgevit.serial import write_atomic


class Teacher:
    """A frozen model whose logits `[B, classes]` for a batch are kept in `folder`, or always computed without one.

    `name` says which model it is; answers of another one are never taken.
    """

    def __init__(self, model: Vit, *, name: str = "", folder: Path | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name, self.folder = name, folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _refusal(folder, error) from error

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalised images `[B, 3, height, width]`, on their device."""
        if self.folder is None:
            return self.model(images, trim=True)  # type: ignore[no-any-return]
        path = self.folder / f"{self._key(images)}.npy"
        known = _read(path, len(images))
        if known is None:
            known = self.model(images, trim=True).float().cpu()
            buffer = io.BytesIO()
            np.save(buffer, known.numpy(), allow_pickle=False)
            try:
                write_atomic(path, buffer.getvalue())
            except OSError as error:
                raise _refusal(path, error) from error
        return known.to(images.device)

    def _key(self, images: Tensor) -> str:
        digest = hashlib.blake2b(f"{self.name} {tuple(images.shape)}".encode(), digest_size=20)
        digest.update(images.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _refusal(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot keep the teacher's outputs in {path}: {error.strerror or error}; make room, or leave out "
        "--teacher-cache, and go on with --resume"
    )


def _read(path: Path, rows: int) -> Tensor | None:
    """Kept logits; None if there are none, or the file is not whole."""
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = kept.ndim == 2 and len(kept) == rows and kept.dtype == np.float32
    return torch.from_numpy(kept) if whole else None
