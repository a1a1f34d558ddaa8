"""ExecuTorch as a peer: a timm model by its own export and quantizer, run by XNNPACK.

Dynamic int8 by torchao's PT2E: weights of 8 bits per channel, activations quantized while it runs, no calibration.
Attention is written out as products first: XNNPACK takes no fused one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_builds import timm_model


def executorch_dynamic(name: str, weights: Path, path: Path) -> None:
    """Quantize a timm model, lower it to XNNPACK and write it as .pte."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    model = timm_model(name, weights)
    for block in model.blocks:
        block.attn.fused_attn = False
    given = (torch.zeros(1, 3, *model.patch_embed.img_size),)
    asked: Any = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    prepared = prepare_pt2e(torch.export.export(model, given).module(), XNNPACKQuantizer().set_global(asked))
    prepared(*given)
    quantized = torch.export.export(convert_pt2e(prepared), given)
    lowered = to_edge_transform_and_lower(quantized, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def executorch_runner(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Normalised image `[1, 3, height, width]` to logits `[1, classes]`; the threads are the process's, for all."""
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda image: np.array(method.execute([torch.from_numpy(image)])[0])
