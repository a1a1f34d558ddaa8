"""LiteRT (TensorFlow Lite) as a peer: what litert-torch and ai-edge-quantizer make of a timm model, run by XNNPACK.

Dynamic int8: weights of 8 bits per channel, activations quantized while it runs, no calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peer_builds import timm_model


def litert_dynamic(name: str, weights: Path, path: Path) -> None:
    """Convert a timm model and quantize it; the float model is written beside it."""
    import torch
    from ai_edge_quantizer import quantizer, recipe
    from litert_torch import convert

    model = timm_model(name, weights)
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
