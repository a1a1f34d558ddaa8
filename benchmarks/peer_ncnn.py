"""ncnn as a peer: a timm model, traced by torch and converted by pnnx, in float.

ncnn's int8 tool knows convolutions best and asks for calibration tables of its own; what is taken here is float32, as
it is and with activations stored as bf16.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

from benchmarks.peer_builds import timm_model


def ncnn_float(name: str, weights: Path, path: Path) -> None:
    """Write a timm model as `path`, a .param file, with its .bin beside it."""
    import pnnx
    import torch

    model = timm_model(name, weights)
    for block in model.blocks:
        block.attn.forward = MethodType(_attend, block.attn)
    traced = path.with_name("ncnn.pt")
    size = model.patch_embed.img_size
    with torch.no_grad():
        torch.jit.trace(model, torch.zeros(1, 3, *size)).save(str(traced))  # type: ignore[no-untyped-call]
    shape = f"inputshape=[1,3,{size[0]},{size[1]}]"
    files = (f"ncnnparam={path}", f"ncnnbin={path.with_suffix('.bin')}", f"ncnnpy={path.with_suffix('.py')}")
    subprocess.run(
        [pnnx.EXEC_PATH, traced.name, shape, "fp16=0", *(f.replace(f"{path.parent}/", "") for f in files)],
        check=True,
        capture_output=True,
        cwd=path.parent,
    )


def ncnn_runner(path: Path, threads: int, *, bf16: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Normalised image `[1, 3, height, width]` to logits `[1, classes]`."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_bf16_storage = threads, bf16
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise ValueError(f"ncnn does not load {path}: pnnx left an operator that it lacks")

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.array(extractor.extract("out0")[1])[None]

    return run


def _attend(attention: Any, x: Any, **_: Any) -> Any:
    """Attend as timm does, with q, k and v split before heads are: ncnn has no arrays of five axes."""
    import torch

    batch, tokens, width = x.shape
    q, k, v = (
        part.reshape(batch, tokens, attention.num_heads, -1).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1)
    )
    heads = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return attention.proj(heads.transpose(1, 2).reshape(batch, tokens, width))
