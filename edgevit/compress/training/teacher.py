"""The dense model's outputs, kept on disk for runs that see the same views: a quarter of a step's time is the teacher.

Order and augmentation are functions of the seed, so runs with other budgets, groups or stages meet the same batches.
A batch is known by its pixels, so nothing has to be told when a recipe changes.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgevit.compress.training.tokens import Streams
from edgevit.errors import OutputError
from edgevit.torch_form.vit import Vit
from edgevit.util.atomic import sweep
from edgevit.util.strict_json import write_atomic


class Taught(NamedTuple):
    """What a teacher says of a batch: logits `[B, classes]`, and what `Streams.take` gives, float16, if asked for."""

    logits: Tensor
    tokens: Tensor | None


class Teacher:
    """A frozen model whose answers to a batch are kept in `folder`, or always computed without one.

    `name` says which model it is; answers of another one are never taken. `tokens` asks for streams too.
    """

    def __init__(self, model: Vit, *, name: str = "", folder: Path | None = None, tokens: bool = False) -> None:
        self.model = model.eval().requires_grad_(False)
        self.streams = Streams(model.spec) if tokens else None
        self.name, self.folder = name, folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder)
            except OSError as error:
                raise _refusal(folder, error) from error

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Taught:
        """Answer normalised images `[B, 3, height, width]`, on their device."""
        if self.folder is None:
            return self._ask(images)
        key, streams = self._key(images), self.streams
        logits = _read(self.folder / f"{key}.npy", np.float32, (len(images), self.model.spec.head.classes))
        tokens = None
        if streams is not None:
            tokens = _read(self.folder / f"{key}.tokens.npy", np.float16, streams.shape(len(images)))
        if logits is None or (tokens is None) != (streams is None):
            logits, tokens = self._ask(images)
            _write(self.folder / f"{key}.npy", logits.float())
            if tokens is not None:
                _write(self.folder / f"{key}.tokens.npy", tokens)
        return Taught(logits.to(images.device), None if tokens is None else tokens.to(images.device))

    def _ask(self, images: Tensor) -> Taught:
        streams = self.streams
        logits = self.model(images, watch=None if streams is None else streams.watch, trim=True)
        return Taught(logits, None if streams is None else streams.take().half())

    def _key(self, images: Tensor) -> str:
        digest = hashlib.blake2b(f"{self.name} {tuple(images.shape)}".encode(), digest_size=20)
        digest.update(images.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _refusal(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot keep the teacher's outputs in {path}: {error.strerror or error}; make room, or leave out "
        "--teacher-cache, and go on with --resume"
    )


def _write(path: Path, values: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values.cpu().numpy(), allow_pickle=False)
    try:
        write_atomic(path, buffer.getvalue(), sync=False)  # it can be had again
    except OSError as error:
        raise _refusal(path, error) from error


def _read(path: Path, kind: type, shape: tuple[int, ...]) -> Tensor | None:
    """Return kept values; None if there are none, or the file is not whole."""
    try:
        # Mapped first: a header that claims more than the file holds is then a fault, not an allocation.
        kept = np.load(path, allow_pickle=False, mmap_mode="r")
    except Exception:  # numpy raises many kinds on damaged headers
        return None
    fits = isinstance(kept, np.ndarray) and kept.dtype == kind and kept.shape == shape
    return torch.from_numpy(np.array(kept)) if fits else None
