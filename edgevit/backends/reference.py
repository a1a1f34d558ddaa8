"""The float model on this machine, for calibration and as the reference that a build is held against.

Always ONNX Runtime in float32, whatever the target's runtime is: one reference for all of them.

A model comes whole, or only names its large initialisers and `weights` holds them: ONNX Runtime then reads the arrays
where they are, and holds no more than what it packs for its kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends import feed
from edgevit.backends.onnxruntime import OnnxRuntimeRunner, localise, options

if TYPE_CHECKING:
    import onnx

    Weights = Mapping[str, np.ndarray]


def taps(
    model: onnx.ModelProto, weights: Weights | None = None, *, optimised: bool = True
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return every output of a lowered model by name, as a function of an image uint8 `[1, height, width, 3]`.

    It computes in the thread that calls it, and several may at once. With `optimised` false a quantized model is
    computed as it is written, as `reference_with_margins` does.
    """
    session = _session(model, weights, optimised=optimised, threads=1)
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": image}), strict=True))

    return run


def reference(model: onnx.ModelProto, weights: Weights | None = None, *, exact: bool = False) -> OnnxRuntimeRunner:
    """Return a runner of a lowered model, on all cores; `exact` keeps int8 from saturating on a CPU without VNNI."""
    return OnnxRuntimeRunner(_session(model, weights, weight_bits=8 if exact else 7))


def reference_with_margins(
    model: onnx.ModelProto, weights: Weights | None = None, *, optimised: bool = True
) -> Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return a lowered model as a function (image, effort) -> (logits, gates, margins).

    `margins` float32 `[branches]` is how far every gate's logit is above (open) or below (closed) its limit, inf for a
    branch without a gate. With `optimised` false a quantized model is computed as it is written: rounded values in
    float arithmetic, no int8 kernel.
    """
    watched = type(model)()
    watched.CopyFrom(model)
    nodes = {node.output[0]: node for node in watched.graph.node}
    limits = {t.name: np.frombuffer(t.raw_data, np.float32) for t in model.graph.initializer if len(t.raw_data) == 4}
    opened = nodes["gates/open"].input
    gates = {index: nodes[name].input for index, name in enumerate(opened) if name in nodes}
    for logit, _ in gates.values():
        watched.graph.output.add(name=logit)
    session = _session(watched, weights, optimised=optimised)
    shape = tuple(next(i.shape for i in session.get_inputs() if i.name == "image"))
    gated = any(value.name == "effort" for value in model.graph.input)

    def run(image: np.ndarray, effort: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits, states, *values = session.run(None, feed(image, effort, shape=shape, gated=gated))
        margins = np.full(states.shape, np.inf, dtype=np.float32)
        for value, (index, (_, limit)) in zip(values, gates.items(), strict=True):
            margins[index] = value.item() - limits[limit][0]
        return logits, states, margins

    return run


def _session(
    model: onnx.ModelProto,
    weights: Weights | None,
    *,
    optimised: bool = True,
    weight_bits: int = 7,
    threads: int | None = None,
) -> Any:
    import onnxruntime

    configured = options(threads or os.cpu_count() or 1, weight_bits)
    if not optimised:
        configured.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weights:
        # Shared, not copied: each value keeps its array alive, and the session's options keep the values.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        configured.add_external_initializers(list(weights), values)
    raw = localise(model).SerializeToString()
    return onnxruntime.InferenceSession(raw, configured, providers=["CPUExecutionProvider"])
