"""LiteRT (TensorFlow Lite) as a peer: what litert-torch and ai-edge-quantizer make of a timm model, run by XNNPACK.

    pip install -e ".[bench-litert]"        (about 600 MB; install a CPU build of torch first)

Dynamic int8: weights of 8 bits per channel, activations quantized while it runs, no calibration. Left out where these
packages are not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def installed() -> bool:
    """Return whether LiteRT and its converters are here."""
    return all(importlib.util.find_spec(name) for name in ("ai_edge_litert", "ai_edge_quantizer", "litert_torch"))


def versions() -> str:
    """Return the versions of all three."""
    return ", ".join(f"{name} {version(name)}" for name in ("ai-edge-litert", "litert-torch", "ai-edge-quantizer"))


def litert_dynamic(name: str, weights: Path, path: Path) -> None:
    """Convert a timm model and quantize it; the float model is written beside it."""
    import torch
    from ai_edge_quantizer import quantizer, recipe
    from litert_torch import convert
    from safetensors.torch import load_file

    from edgevit.frontends.timm_import import timm

    model: Any = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(weights))
    height, width = model.patch_embed.img_size
    floats = path.with_name("litert-float.tflite")
    convert(model, (torch.zeros(1, 3, height, width),)).export(str(floats))
    made = quantizer.Quantizer(str(floats))
    made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    made.quantize().export_model(str(path))


def litert_runner(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Normalised image `[1, 3, height, width]` to logits `[1, classes]`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(made["index"]))

    return run
