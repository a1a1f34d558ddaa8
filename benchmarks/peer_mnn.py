"""MNN as a peer: the ONNX export by its converter, weights stored in 8 bits.

Weights alone are int8, the products are float: its tool for int8 products lost accuracy and took more time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peer_builds import INPUT


def mnn_weights(exported: Path, path: Path) -> None:
    """Convert an ONNX file, weights of 8 bits.

    By the converter itself: MNN's command around it runs pip when imported, and sends its arguments to its makers.
    """
    import _tools

    _tools.mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(exported), "--MNNModel", str(path)]
        + ["--weightQuantBits", "8", "--bizCode", "peer"]
    )
    if not path.exists():
        raise ValueError(f"MNN did not convert {exported}; what it printed says why")


def mnn_runner(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Normalised image `[1, 3, height, width]` to logits `[1, classes]`."""
    import MNN

    asked = {"backend": "CPU", "numThread": threads, "precision": "normal", "memory": "low"}
    manager = MNN.nn.create_runtime_manager((asked,))
    net = MNN.nn.load_module_from_file(str(path), [INPUT], ["logits"], runtime_manager=manager)

    def run(image: np.ndarray) -> np.ndarray:
        given = MNN.expr.placeholder(list(image.shape), MNN.expr.NCHW)
        given.write(image)
        return np.array(net.forward([given])[0].read())

    return run
