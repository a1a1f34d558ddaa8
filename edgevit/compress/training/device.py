"""Where to compute."""

from __future__ import annotations

import os

import torch

from edgevit.errors import TrainingError


def device_of(name: str) -> str:
    """Return the device that `name` means here: `auto` is a GPU where torch finds one; `cuda` is this process's own.

    Raises:
        TrainingError: torch does not know the device, or cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"cannot compute on {name!r} ({reason}); allowed: auto, cpu, cuda, cuda:N or another device of torch"
        ) from None
    return name


def use_threads(count: int | None) -> None:
    """Compute with that many threads; None leaves the number to torch."""
    if count is not None:
        torch.set_num_threads(count)
