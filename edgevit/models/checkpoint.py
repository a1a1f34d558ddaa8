"""Checkpoints: from a .safetensors or torch file to named float32 tensors, without unpickling code.

Understands what timm, DeiT and T2T-ViT write: the wrappers `state_dict` and `model`, their `_ema` forms (taken first,
as they are what papers report), and the `module.` prefix of data-parallel training.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgevit.errors import WeightsError

# Hugging Face names torch files .bin, and T2T-ViT's releases are called .pth.tar.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_SHOWN = 8


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint file into named float32 tensors on the CPU.

    Raises:
        WeightsError: no such file, another suffix, unreadable or unsafe content, no tensors, or values not finite.
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"{path} is not a weights file: got {path.suffix or 'no suffix'}, allowed: {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; pass --weights with an existing file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unwrap(content, path)
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
    if lines:
        raise WeightsError(f"the weights do not fit {what}:\n" + "\n".join(lines))


def classes_of(state: Mapping[str, Tensor]) -> int | None:
    """Length of the output of a checkpoint's classifier `head`, None if it has none."""
    weight = state.get("head.weight")
    return weight.shape[0] if weight is not None and weight.ndim == 2 else None


def describe_file(path: Path) -> dict[str, str]:
    """What a Program's origin says about the file its weights come from."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"weights": "file", "weights_file": path.name, "weights_sha256": digest}


def shorten(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}); get the file again") from error


def _read_torch(path: Path) -> Any:
    # argparse.Namespace is the one class that DeiT's and timm's training scripts store beside the tensors.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "damaged file"
        raise WeightsError(
            f"{path} is damaged or holds more than tensors, and code is never run from a weights file ({first}); "
            "save model.state_dict() alone, best as .safetensors"
        ) from error
    except Exception as error:  # torch raises many kinds on damaged files: EOFError, RuntimeError, KeyError, ...
        raise WeightsError(f"{path} is not a readable torch checkpoint ({error}); get the file again") from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[w] for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no named tensors: got {_kind(content)}, expected a state dict")
    strangers = [str(n) for n, v in content.items() if not isinstance(n, str) or not isinstance(v, Tensor)]
    if strangers:
        raise WeightsError(f"{path} is not a state dict: not tensors are {shorten(strangers)}; save model.state_dict()")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name in state:
            raise WeightsError(f"{path} holds {name!r} twice, with and without the prefix 'module.'")
        if value.layout is not torch.strided or value.is_complex():
            raise WeightsError(f"{path}: {name} is {value.dtype}, {value.layout}; dense real tensors are expected")
        state[name] = value.detach().float()
    return state


def _kind(content: Any) -> str:
    return "nothing" if isinstance(content, Mapping) else type(content).__name__
