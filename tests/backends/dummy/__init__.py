"""A backend of its own, in this folder alone: what `edgevit.backends.Backend` asks, for a runtime in numpy."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends import NO_TOKENS, Answer, Source, Start
from edgevit.backends.inputs import feed
from edgevit.backends.refusals import refuse_search, refused_cpu, refused_formats
from edgevit.errors import BundleError
from edgevit.measure.branch_times import Trace, medians, times_by_branch, traced_efforts
from tests.backends.dummy.shipped_runner import Interpreter

if TYPE_CHECKING:
    import onnx

    from edgevit.schema.target import Target

NAME = "dummy"
MODEL, DATA = "model.json", "model.npz"
FILES: Mapping[str, str] = {"graph": MODEL}
BESIDE: tuple[str, ...] = (DATA,)
PACKAGES: tuple[str, ...] = ("numpy",)
INSTALL = "pip install numpy"
WHEELS = PACKAGES
NATIVE = False
READS_ONNX = False
MERGES = False
FOLLOWING_COSTS = ""


class DummyRunner:
    def __init__(self, path: Path) -> None:
        self._model = Interpreter(path)
        self._shape = tuple(self._model.graph["shape"])

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        feed(image, effort, shape=self._shape, gated=True)
        return self._model.run(image, effort)

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        return Answer(*self.run(image, effort), NO_TOKENS)

    def close(self) -> None:
        del self._model


def versions() -> dict[str, str]:
    return {NAME: "1.0"}


def refused(target: Target) -> tuple[str, ...]:
    return (*refused_formats(target, FILES), *refused_cpu(target))


def lacking(target: Target, *, installed: bool) -> tuple[str, ...]:
    return ()


def require(target: Target, tune_s: float = 0.0) -> None:
    refuse_search(target, tune_s)


def build(source: Source, folder: Path) -> tuple[str, ...]:
    arrays: dict[str, np.ndarray] = {}
    graph = _graph(source.model.graph, arrays)
    shape = [dim.dim_value for dim in source.model.graph.input[0].type.tensor_type.shape.dim]
    (folder / MODEL).write_text(json.dumps({**graph, "shape": shape}), encoding="utf-8")
    np.savez(folder / DATA, **arrays)  # type: ignore[arg-type]
    return MODEL, DATA


def _graph(graph: onnx.GraphProto, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    from onnx import helper, numpy_helper

    arrays.update({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
    nodes = []
    for node in graph.node:
        row: dict[str, Any] = {"name": node.name, "op": node.op_type, "attributes": {}}
        row |= {"inputs": list(node.input), "outputs": list(node.output)}
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            if attribute.HasField("g"):
                row[attribute.name] = _graph(value, arrays)
            else:
                row["attributes"][attribute.name] = value.decode() if isinstance(value, bytes) else value
        nodes.append(row)
    return {"nodes": nodes, "outputs": [output.name for output in graph.output]}


def load(
    folder: Path, *, threads: int = 1, precision: str = "f32", file: str | None = None, weight_bits: int = 8
) -> DummyRunner:
    try:
        return DummyRunner(folder / (file or MODEL))
    except OSError as error:
        raise BundleError(f"{folder} holds no model of the dummy: {error}") from error


def settings(folder: Path, *, precision: str = "f32", weight_bits: int = 8, file: str | None = None) -> dict[str, Any]:
    return {}


def trace_branches(
    model: Path, images: np.ndarray, *, branches: Sequence[str], gated: Sequence[str], **settings: Any
) -> Trace:
    interpreter = Interpreter(model)
    top = {node["name"] for node in interpreter.graph["nodes"]}
    found: list[list[dict[str, float]]] = []
    for effort in traced_efforts(gated):
        found.append([])
        for image in images:
            rows, began = [], time.perf_counter()

            def note(node: dict[str, Any], given: Any) -> None:
                nonlocal began
                if node["name"] in top:
                    now = time.perf_counter()
                    rows.append((node["name"], 1000 * (now - began)))  # noqa: B023  called in this turn alone
                    began = now

            interpreter.run(image[None], effort, note)
            found[-1].append(times_by_branch(rows, branches, gated))
    skipped = {name: ms for name, ms in medians(found[-1]).items() if name in gated}
    return Trace(open_ms=medians(found[0]), skipped_ms=skipped, other_ms=0.0, source="the dummy's clock", memory=None)


def arena_peak(model: Path, image: np.ndarray, settings: Mapping[str, str], start: Start | None = None) -> None:
    return None
