"""Checkpoints: from files to named float32 tensors, without unpickling code.

Understands safetensors, torch files, the JAX release's .npz, shards with an index and folders of Hugging Face's hub;
wrappers, prefixes and averaged copies (`naming`); and the names of transformers, CLIP, torchvision and JAX. What comes
out has timm's names, or T2T-ViT's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgevit.errors import WeightsError
from edgevit.frontends.hub_folder import INDEX, indexed_names, weight_files
from edgevit.frontends.jax_names import read_jax
from edgevit.frontends.naming import (
    Copies,
    hint,
    plain_names,
    shorten,
    tensors,
    unwrap,
)
from edgevit.frontends.torch_file import read_torch
from edgevit.frontends.transformers_names import join_qkv, to_timm_names
from edgevit.program.intake import check_safetensors, unpacked_allowed
from edgevit.util.progress import Say

# Hugging Face names torch files .bin, Lightning .ckpt, and T2T-ViT's releases are called .pth.tar.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".npz")

__all__ = ["check_keys", "classes_of", "describe_file", "load_checkpoint", "shorten"]


def load_checkpoint(path: Path, *, ema: bool | None = None, say: Say = lambda _: None) -> dict[str, Tensor]:
    """Read a checkpoint into named float32 tensors on the CPU.

    Args:
        path: a file, an index of shards, or a folder of Hugging Face's hub.
        ema: take averaged weights (True) or plain ones (False); None: those that the source itself judges.
        say: told what was chosen, renamed by a table, or left out.

    Raises:
        WeightsError: no such file, another suffix, unreadable or unsafe content, no tensors, values not finite, or
            averaged weights asked for where there are none.
    """
    if not path.is_dir() and not path.name.endswith(INDEX) and path.suffix.lower() not in SUFFIXES:
        raise WeightsError(
            f"{path} is not a weights file: got {path.suffix or 'no suffix'}, allowed: {', '.join(SUFFIXES)}, "
            "or a folder of Hugging Face's hub"
        )
    if not path.is_file() and not (path.is_dir() and path.suffix.lower() not in SUFFIXES):
        if path.exists() and not path.is_dir():
            raise WeightsError(f"weights file {path} is a pipe or a device, and only regular files are read")
        raise WeightsError(f"weights file {path} does not exist; pass --weights with an existing file")
    copies = Copies(where=str(path), ema=ema, say=say)
    state = _read_all(path, copies)
    if ema and not copies.met:
        raise WeightsError(f"{path} holds no averaged weights; omit --ema")
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(f"{path} holds values that are not finite in {shorten(broken)}; get the file again")
    return state


def check_keys(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Compare names and shapes with those a model needs.

    Raises:
        WeightsError: lists missing, unexpected and wrong-shaped keys, each list shortened and counted.
    """
    missing = [n for n in expected if n not in state]
    unexpected = [n for n in state if n not in expected]
    wrong = [
        f"{n} {list(state[n].shape)} instead of {list(shape)}"
        for n, shape in expected.items()
        if n in state and tuple(state[n].shape) != tuple(shape)
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
    lines = [f"  {len(names)} {title}: {shorten(names)}" for title, names in lists if names]
    if not lines:
        return
    looks = hint(unexpected, every=len(unexpected) == len(state))
    raise WeightsError(f"the weights do not fit {what}:\n" + "\n".join([*lines, *([f"  {looks}"] if looks else [])]))


def classes_of(state: Mapping[str, Tensor]) -> int | None:
    """Return the length of the output of a checkpoint's classifier `head`, None if it has none."""
    weight = state.get("head.weight")
    return weight.shape[0] if weight is not None and weight.ndim == 2 else None


def describe_file(path: Path) -> dict[str, str]:
    """What a Program's origin says about where its weights come from; shards are hashed as one, in the order of names.

    Raises:
        WeightsError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for part in weight_files(path):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error})") from error
    return {"weights": "file", "weights_file": path.name or path.resolve().name, "weights_sha256": digest.hexdigest()}


def _read_all(path: Path, copies: Copies) -> dict[str, Tensor]:
    files = weight_files(path)
    if files[0].suffix.lower() == ".npz":
        return join_qkv(read_jax(files[0]), copies.where)
    content: Any = _read(files[0])
    if len(files) > 1:
        content = {}
        for file in files:
            part = _read(file)
            twice = [n for n in part if n in content] if isinstance(part, Mapping) else []
            if twice or not isinstance(part, Mapping):
                raise WeightsError(f"{file} holds no named tensors, or some that another shard holds; get it again")
            content |= part
    missing = indexed_names(path) - set(content) if isinstance(content, Mapping) else set()
    if missing:
        raise WeightsError(f"{path} promises {shorten(sorted(missing))}, which no shard holds; get the files again")
    most = unpacked_allowed(sum(file.stat().st_size for file in files))
    state = plain_names(tensors(unwrap(content, copies), copies.where, most), copies)
    return to_timm_names(state, copies.where, copies.say)


def _read(path: Path) -> Any:
    if path.suffix.lower() != ".safetensors":
        return read_torch(path)
    try:
        check_safetensors(path)
        return load_file(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}); get the file again") from error
