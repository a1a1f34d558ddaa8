"""The float model on this machine, for calibration and as the reference that a build is held against.

Always ONNX Runtime in float32, whatever the target's runtime is: one reference for all of them.

A model comes whole, or only names its large initialisers and `weights` holds them: ONNX Runtime then reads the arrays
where they are, and holds no more than what it packs for its kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgevit.backends.given_pairs import accept_pairs, given, pair_outputs, point_names, telling_pairs, told_pairs
from edgevit.backends.inputs import feed
from edgevit.backends.onnxruntime import OnnxRuntimeRunner, localise, options
from edgevit.verify.pairs import Pairs
from edgevit.verify.tokens import PointMargins

Told = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[PointMargins, ...]]
if TYPE_CHECKING:
    import onnx

    Weights = Mapping[str, np.ndarray]


class Margins(Protocol):
    """What `reference_with_margins` returns."""

    def __call__(self, image: np.ndarray, effort: float, pairs: Sequence[Pairs] | None = None) -> Told: ...


def taps(
    model: onnx.ModelProto, weights: Weights | None = None, *, optimised: bool = True, exact: bool = False
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return every output of a lowered model by name, as a function of an image uint8 `[1, height, width, 3]`.

    It computes in the thread that calls it, and several may at once. With `optimised` false a quantized model is
    computed as it is written, as `reference_with_margins` does; `exact` is as for `reference`.
    """
    session = _session(model, weights, optimised=optimised, weight_bits=8 if exact else 7, threads=1)
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": image}), strict=True))

    return run


def paired(
    model: onnx.ModelProto, weights: Weights | None = None, *, exact: bool = False
) -> Callable[[np.ndarray, Sequence[Pairs] | None], tuple[np.ndarray, tuple[Pairs, ...]]]:
    """Return a lowered model whose gates are left out as a function (image, pairs) -> (logits, the pairs it chose).

    With `pairs`, one each for the points where tokens merge, it merges these instead of its own; else as `taps`.
    """
    places, points, steered = pair_outputs(model), point_names(model), telling_pairs(model)
    accept_pairs(steered)
    accepted = {value.name for value in steered.graph.input}
    session = _session(steered, weights, weight_bits=8 if exact else 7, threads=1)
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray, pairs: Sequence[Pairs] | None) -> tuple[np.ndarray, tuple[Pairs, ...]]:
        inputs = {"image": image} | ({} if pairs is None else dict(given(points, pairs, accepted)))
        values = dict(zip(names, session.run(names, inputs), strict=True))
        return values["logits"], told_pairs(places, values)

    return run


def reference(model: onnx.ModelProto, weights: Weights | None = None, *, exact: bool = False) -> OnnxRuntimeRunner:
    """Return a runner of a lowered model, on all cores; `exact` keeps int8 from saturating on a CPU without VNNI."""
    return OnnxRuntimeRunner(_session(model, weights, weight_bits=8 if exact else 7))


def reference_with_margins(
    model: onnx.ModelProto, weights: Weights | None = None, *, optimised: bool = True
) -> Margins:
    """Return a lowered model as a function (image, effort, pairs) -> (logits, gates, margins, points).

    `margins` float32 `[branches]` is how far every gate's logit is above (open) or below (closed) its limit, inf for a
    branch without a gate. `points` are those where tokens merge; with `pairs`, one each, they merge these, and tell
    what they would have chosen from. With `optimised` false a quantized model is computed as it is written: rounded
    values in float arithmetic, no int8 kernel.
    """
    watched = type(model)()
    watched.CopyFrom(model)
    nodes = {node.output[0]: node for node in watched.graph.node}
    limits = {t.name: np.frombuffer(t.raw_data, np.float32) for t in model.graph.initializer if len(t.raw_data) == 4}
    opened = nodes["gates/open"].input
    gates = {index: nodes[name].input for index, name in enumerate(opened) if name in nodes}
    told = [output.name for output in model.graph.output if output.name in ("logits", "gates", "tokens")]
    points = {name: _thresholds(name, nodes, model) for name in point_names(model)}
    asked = [*(logit for logit, _ in gates.values()), *(name for p in points.values() for name in p.outputs)]
    for output in dict.fromkeys(asked):
        watched.graph.output.add(name=output)
    accept_pairs(watched)
    accepted = {value.name for value in watched.graph.input}
    session = _session(watched, weights, optimised=optimised)
    shape = tuple(next(i.shape for i in session.get_inputs() if i.name == "image"))
    gated = any(value.name == "effort" for value in model.graph.input)
    branches = [name.partition(".")[0] for name in opened]

    def run(image: np.ndarray, effort: float, pairs: Sequence[Pairs] | None = None) -> Told:
        names, inputs = list(dict.fromkeys([*told, *asked])), feed(image, effort, shape=shape, gated=gated)
        if pairs is not None:
            inputs |= given(list(points), pairs, accepted)
        values = dict(zip(names, session.run(names, inputs), strict=True))
        margins = np.full(values["gates"].shape, np.inf, dtype=np.float32)
        for index, (logit, limit) in gates.items():
            margins[index] = values[logit].item() - limits[limit][0]
        found, left = list[PointMargins](), values.get("tokens")
        for index, (name, point) in enumerate(points.items()):
            scores = values[point.scores] / point.width
            counts, margins_of_counts = point.margins(values)
            found.append(
                PointMargins(
                    branch=branches.index(name.removeprefix("merge.")),
                    counts=counts,
                    margins=margins_of_counts,
                    left=sum(scores.shape) - counts[0] if left is None else int(left[index]),
                    scores=scores,
                )
            )
        return values["logits"], values["gates"], margins, tuple(found)

    return run


@dataclass(frozen=True)
class _Thresholds:
    """Where a point's scores are among a run's outputs, with its values and limit where they decide the number.

    `steps` is what each number of pairs is more than the one before, from `least` on, or the output that says so.
    """

    least: int
    scores: str
    decided: tuple[str, ...]
    width: int
    steps: np.ndarray | str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.scores, *self.decided, *([self.steps] if isinstance(self.steps, str) and self.steps else []))

    def margins(self, values: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], np.ndarray]:
        """Return the numbers of pairs that there are, and the margin of each but the first."""
        if not self.decided:
            return (self.least,), np.zeros(0, np.float32)
        last, limit = (values[name] for name in self.decided)
        steps = values[self.steps] if isinstance(self.steps, str) else self.steps
        last, steps = last[steps > 0], steps[steps > 0]
        margins = np.full(last.shape, -np.inf, np.float32)
        np.subtract(last, limit, out=margins, where=np.isfinite(last))  # the others are pairs that there are not
        return (self.least, *(self.least + int(n) for n in np.cumsum(steps))), margins / np.float32(self.width)


def _thresholds(name: str, nodes: Mapping[str, onnx.NodeProto], model: onnx.ModelProto) -> _Thresholds:
    from onnx import numpy_helper

    held = {t.name: t for t in model.graph.initializer}
    scores, width = f"{name}/scores", int(held["ones"].dims[0])
    if f"{name}/above" not in nodes:
        split = f"{name}/split" if f"{name}/split" in held else f"{name}/least"
        count = (
            numpy_helper.to_array(held[split])[0] if split in held else numpy_helper.to_array(held[f"{name}/all"])[0]
        )
        return _Thresholds(int(count), scores, (), width)
    steps = f"{name}/steps"
    least = int(numpy_helper.to_array(held[f"{name}/least"])[0]) if f"{name}/pairs" in nodes else 0
    decided = tuple(nodes[f"{name}/above"].input)
    return _Thresholds(least, scores, decided, width, numpy_helper.to_array(held[steps]) if steps in held else steps)


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
