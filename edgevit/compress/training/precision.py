"""Whether bfloat16 is worth it on the device that trains."""

from __future__ import annotations

import torch


def bfloat16(precision: str, device: str) -> bool:
    """Return whether `precision` means bfloat16 here: `auto` takes it where there are instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
