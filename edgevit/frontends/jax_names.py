"""The `.npz` files of the original JAX release of ViT, and of big_vision, under timm's names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import WeightsError
from edgevit.program.intake import ZIP_ERRORS, check_arrays

_ROOTS = ("", "opt/target/", "params/", "params/img/")
_BLOCK = r"Transformer/encoderblock_(\d+)/"
# Pattern of a name -> timm's name, and how its array is laid out.
_NAMES: tuple[tuple[str, str, str], ...] = (
    (r"cls", "cls_token", ""),
    (r"(?:Transformer/posembed_input/pos_embedding|pos_embedding)", "pos_embed", ""),
    (r"embedding/kernel", "patch_embed.proj.weight", "convolution"),
    (r"embedding/bias", "patch_embed.proj.bias", ""),
    (_BLOCK + r"LayerNorm_0/(scale|bias)", r"blocks.\1.norm1.\2", ""),
    (_BLOCK + r"LayerNorm_[12]/(scale|bias)", r"blocks.\1.norm2.\2", ""),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/query/(kernel|bias)", r"blocks.\1.attn.q.\2", "to heads"),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/key/(kernel|bias)", r"blocks.\1.attn.k.\2", "to heads"),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/value/(kernel|bias)", r"blocks.\1.attn.v.\2", "to heads"),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/out/(kernel|bias)", r"blocks.\1.attn.proj.\2", "from heads"),
    (_BLOCK + r"MlpBlock_[03]/Dense_0/(kernel|bias)", r"blocks.\1.mlp.fc1.\2", "linear"),
    (_BLOCK + r"MlpBlock_[03]/Dense_1/(kernel|bias)", r"blocks.\1.mlp.fc2.\2", "linear"),
    (r"Transformer/encoder_norm/(scale|bias)", r"norm.\1", ""),
    (r"pre_logits/(kernel|bias)", r"pre_logits.fc.\1", "linear"),
    (r"head/(kernel|bias)", r"head.\1", "linear"),
)


def read_jax(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a JAX release; arrays outside its parameters (an optimiser's state) are passed over.

    Raises:
        WeightsError: unreadable, no such release, or arrays of another kind than float32 and float16.
    """
    try:
        check_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            root = next((r for r in _ROOTS if f"{r}embedding/kernel" in file.files), None)
            if root is None:
                raise WeightsError(
                    f"{path} is no ViT of the JAX release: it holds no array embedding/kernel; convert it to "
                    "safetensors with timm's names"
                )
            inside = [n for n in file.files if n.startswith(root) and not n.startswith("opt/state/")]
            arrays = {name.removeprefix(root): file[name] for name in inside}
    except (*ZIP_ERRORS, KeyError) as error:
        raise WeightsError(f"{path} is not a readable .npz file ({error}); get the file again") from error
    return {timm: value for name, array in arrays.items() for timm, value in [_converted(name, array, path)]}


def _converted(name: str, array: np.ndarray, path: Path) -> tuple[str, Tensor]:
    if array.dtype not in (np.float32, np.float16, np.float64):
        raise WeightsError(f"{path}: {name} holds {array.dtype}, allowed: float32, float16")
    if not array.size:
        raise WeightsError(f"{path}: {name} has the shape {list(array.shape)}, which holds no numbers")
    for pattern, target, layout in _NAMES:
        found = re.fullmatch(pattern, name)
        if found:
            timm = re.sub(r"\.(?:kernel|scale)$", ".weight", found.expand(target))
            return timm, torch.from_numpy(_laid_out(array, layout).astype(np.float32))
    return name.replace("/", "."), torch.from_numpy(array.astype(np.float32))


def _laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """Return JAX's axes (input first, heads apart) as torch's (output first, heads joined)."""
    if layout == "convolution" and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if layout == "to heads":  # kernel [dim, heads, head_dim], bias [heads, head_dim]
        return array.reshape(array.shape[0], -1).T if array.ndim == 3 else array.reshape(-1)
    if layout == "from heads" and array.ndim == 3:  # [heads, head_dim, dim]
        return array.reshape(-1, array.shape[-1]).T
    if layout in ("linear", "from heads") and array.ndim == 2:
        return array.T
    return array
