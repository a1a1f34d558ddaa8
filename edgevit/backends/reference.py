"""The float model on this machine, for calibration and as the reference that a build is held against.

Always ONNX Runtime in float32, whatever the target's runtime is: one reference for all of them.

A model comes whole, or only names its large initialisers and `weights` holds them: ONNX Runtime then reads the arrays
where they are, and holds no more than what it packs for its kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends import feed
from edgevit.backends.onnxruntime import OnnxRuntimeRunner, localise, options
from edgevit.verify.tokens import PointMargins

Told = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[PointMargins, ...]]
if TYPE_CHECKING:
    import onnx

    Weights = Mapping[str, np.ndarray]


def taps(model: onnx.ModelProto, weights: Weights | None = None) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return every output of a lowered model by name, as a function of an image uint8 `[1, height, width, 3]`."""
    session = _session(model, weights)
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": image}), strict=True))

    return run


def reference(model: onnx.ModelProto, weights: Weights | None = None, *, exact: bool = False) -> OnnxRuntimeRunner:
    """Return a runner of a lowered model, on all cores; `exact` keeps int8 from saturating on a CPU without VNNI."""
    return OnnxRuntimeRunner(_session(model, weights, weight_bits=8 if exact else 7))


def reference_with_margins(
    model: onnx.ModelProto, weights: Weights | None = None, *, optimised: bool = True
) -> Callable[[np.ndarray, float], Told]:
    """Return a lowered model as a function (image, effort) -> (logits, gates, margins, points).

    `margins` float32 `[branches]` is how far every gate's logit is above (open) or below (closed) its limit, inf for a
    branch without a gate. `points` are those where tokens merge, if their number follows the image. With `optimised`
    false a quantized model is computed as it is written: rounded values in
    float arithmetic, no int8 kernel.
    """
    watched = type(model)()
    watched.CopyFrom(model)
    nodes = {node.output[0]: node for node in watched.graph.node}
    limits = {t.name: np.frombuffer(t.raw_data, np.float32) for t in model.graph.initializer if len(t.raw_data) == 4}
    opened = nodes["gates/open"].input
    gates = {index: nodes[name].input for index, name in enumerate(opened) if name in nodes}
    told = [output.name for output in model.graph.output][:3]
    points = {name: _thresholds(name, nodes, model) for name in _points(model)} if "tokens" in told else {}
    asked = [*(logit for logit, _ in gates.values()), *(name for p in points.values() for name in p.outputs)]
    for output in dict.fromkeys(asked):
        watched.graph.output.add(name=output)
    session = _session(watched, weights, optimised=optimised)
    shape = tuple(next(i.shape for i in session.get_inputs() if i.name == "image"))
    gated = any(value.name == "effort" for value in model.graph.input)
    branches = [name.partition(".")[0] for name in opened]

    def run(image: np.ndarray, effort: float) -> Told:
        names = list(dict.fromkeys([*told, *asked]))
        values = dict(zip(names, session.run(names, feed(image, effort, shape=shape, gated=gated)), strict=True))
        margins = np.full(values["gates"].shape, np.inf, dtype=np.float32)
        for index, (logit, limit) in gates.items():
            margins[index] = values[logit].item() - limits[limit][0]
        found = tuple(
            PointMargins(
                branch=branches.index(name.removeprefix("merge.")),
                counts=point.counts,
                margins=point.margins(values),
                left=int(left),
            )
            for (name, point), left in zip(points.items(), values.get("tokens", ()), strict=True)
        )
        return values["logits"], values["gates"], margins, found

    return run


@dataclass(frozen=True)
class _Thresholds:
    """Where a point's values and limit are among a run's outputs; none where the number of pairs is fixed."""

    counts: tuple[int, ...]
    outputs: tuple[str, ...]
    width: int

    def margins(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        if not self.outputs:
            return np.zeros(0, np.float32)
        last, limit = (values[name] for name in self.outputs)
        margins: np.ndarray = (last - limit) / self.width
        return margins


def _points(model: onnx.ModelProto) -> list[str]:
    return [
        node.name.removesuffix("/scores")
        for node in model.graph.node
        if node.name.startswith("merge.") and node.name.endswith("/scores")
    ]


def _thresholds(name: str, nodes: Mapping[str, onnx.NodeProto], model: onnx.ModelProto) -> _Thresholds:
    from onnx import numpy_helper

    held = {t.name: t for t in model.graph.initializer}
    if f"{name}/above" not in nodes:
        split = f"{name}/split" if f"{name}/split" in held else f"{name}/least"
        count = (
            numpy_helper.to_array(held[split])[0] if split in held else numpy_helper.to_array(held[f"{name}/all"])[0]
        )
        return _Thresholds((int(count),), (), 1)
    steps = numpy_helper.to_array(held[f"{name}/steps"])
    least = int(numpy_helper.to_array(held[f"{name}/least"])[0]) if f"{name}/pairs" in nodes else 0
    counts = (least, *(least + int(n) for n in np.cumsum(steps)))
    return _Thresholds(counts, tuple(nodes[f"{name}/above"].input), int(held["ones"].dims[0]))


def _session(model: onnx.ModelProto, weights: Weights | None, *, optimised: bool = True, weight_bits: int = 7) -> Any:
    import onnxruntime

    configured = options(os.cpu_count() or 1, weight_bits)
    if not optimised:
        configured.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weights:
        # Shared, not copied: each value keeps its array alive, and the session's options keep the values.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        configured.add_external_initializers(list(weights), values)
    raw = localise(model).SerializeToString()
    return onnxruntime.InferenceSession(raw, configured, providers=["CPUExecutionProvider"])
