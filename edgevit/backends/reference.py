"""The float model on this machine, for calibration and as the reference that a build is held against.

Always ONNX Runtime in float32, whatever the target's runtime is: one reference for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends.onnxruntime import OnnxRuntimeRunner, options

if TYPE_CHECKING:
    import onnx


def taps(model: onnx.ModelProto) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Every output of a lowered model by name, as a function of an image uint8 `[1, height, width, 3]`."""
    session = _session(model)
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": image}), strict=True))

    return run


def reference(model: onnx.ModelProto) -> OnnxRuntimeRunner:
    """A runner of a lowered float model."""
    return OnnxRuntimeRunner(_session(model))


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    configured = options(os.cpu_count() or 1)
    return onnxruntime.InferenceSession(model.SerializeToString(), configured, providers=["CPUExecutionProvider"])
