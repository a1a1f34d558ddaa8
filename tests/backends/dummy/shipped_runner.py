"""A runtime in numpy, and the part of a bundle's own runner that is it: the nodes of an ONNX graph, one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.runner import ROOT, Run

RUNTIME = ""  # it comes along
USED: tuple[str, ...] = ()
TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_}
Note = Callable[[dict[str, Any], Any], None]


def load_model(manifest: dict[str, Any], threads: int) -> Run:
    """Load the model; the function takes an image and an effort, gives logits and gates."""
    model = Interpreter(ROOT / manifest["model"])
    return lambda image, effort: model.run(image, effort)


class Interpreter:
    """A graph as JSON, its arrays beside it; `note` is told every node with what it gave."""

    def __init__(self, path: Path) -> None:
        self.graph = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            self.arrays = dict(arrays)

    def run(
        self, image: NDArray[np.uint8], effort: float = 0.0, note: Note = lambda node, given: None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        inputs = {"image": image, "effort": np.float32(effort)}
        logits, gates = self._body(self.graph, {**self.arrays, **inputs}, note)
        return logits.copy(), gates.copy()

    def _body(self, graph: dict[str, Any], values: dict[str, Any], note: Note) -> list[Any]:
        for node in graph["nodes"]:
            arguments = [values[name] if name else None for name in node["inputs"]]
            if node["op"] == "If":
                chosen = node["then_branch" if np.all(arguments[0]) else "else_branch"]
                given: Any = self._body(chosen, dict(values), note)
            else:
                given = OPERATORS[node["op"]](*arguments, **node["attributes"])
                given = given if isinstance(given, list) else [given]
            note(node, given)
            values.update(zip(node["outputs"], given, strict=True))
        return [values[name] for name in graph["outputs"]]


def _spread(values: Any, like: Any, axis: int) -> Any:
    """Values of one axis, shaped so that they meet it; single ones meet all."""
    shape = [1] * np.ndim(like)
    if np.ndim(values):
        shape[axis] = -1
    return np.reshape(values, shape)


def _dequantized(x: Any, scale: Any, zero: Any = 0, axis: int = 1) -> Any:
    return ((x.astype(np.int32) - _spread(zero, x, axis)) * _spread(scale, x, axis)).astype(np.float32)


def _quantized(x: Any, scale: Any, zero: Any, axis: int = 1) -> Any:
    least, most = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    return np.clip(np.rint(x / scale) + zero, least, most).astype(zero.dtype)


def _product(a: Any, b: Any, c: Any = None, transB: int = 0) -> Any:
    made = a @ (b.T if transB else b)
    return made if c is None else made + c


def _normalised(x: Any, scale: Any, bias: Any = None, axis: int = -1, epsilon: float = 1e-5) -> Any:
    centred = x - x.mean(axis=axis, keepdims=True)
    made = centred / np.sqrt((centred**2).mean(axis=axis, keepdims=True) + epsilon) * scale
    return (made if bias is None else made + bias).astype(np.float32)


def _softmax(x: Any, axis: int = -1) -> Any:
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def _gelu(x: Any, approximate: str = "none") -> Any:
    assert approximate == "none"
    return (x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(np.float32)


def _reshaped(x: Any, shape: Any) -> Any:
    return x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def _slice(x: Any, starts: Any, ends: Any, axes: Any, steps: Any = None) -> Any:
    cut = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        cut[int(axis)] = slice(int(starts[i]), int(ends[i]), None if steps is None else int(steps[i]))
    return x[tuple(cut)]


def _split(x: Any, sizes: Any = None, axis: int = 0, num_outputs: int = 1) -> list[Any]:
    return np.split(x, num_outputs if sizes is None else np.cumsum(sizes)[:-1], axis=axis)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "Cast": lambda x, to: x.astype(TYPES[to]),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "DequantizeLinear": _dequantized,
    "Gather": lambda x, index, axis=0: np.take(x, index, axis=axis),
    "Gelu": _gelu,
    "Gemm": _product,
    "Greater": lambda a, b: a > b,
    "Identity": lambda x: x,
    "LayerNormalization": _normalised,
    "MatMul": lambda a, b: a @ b,
    "QuantizeLinear": _quantized,
    "Reshape": _reshaped,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Transpose": lambda x, perm: np.transpose(x, perm),
}
