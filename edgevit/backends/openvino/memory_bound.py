"""What can be said soundly about OpenVINO's memory: what the model's own tensors need, not the plugin's process.

OpenVINO's CPU plugin has no arena that could be read or capped. What it adds to the graph's tensors (weights packed
again for oneDNN, reorders and scratch, the memory of every `If` body for as long as the model is loaded, code
generated at load, its own libraries) is decided inside it and told nowhere: its runtime graph does not even show `If`
bodies. So there are two figures, of different kind, and they are never added:

- proven, here: an upper bound, over every gate path, on what the graph's tensors need: constants as the IR stores them,
  and the activations that are live at once when nodes run in the IR's order and a tensor is freed after its last use.
  Views count as tensors of their own, operations that the plugin fuses away count, and values quantized on the fly
  count as float. It follows from the IR alone, so it is the floor of a good executor and no bound on this process.
- measured, elsewhere: the resident peak of a fresh process that loads and runs the model. It bounds nothing but the
  runs that were measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.errors import BoundError
from edgevit.schema.memory_bound import BoundDetail, MemoryBound
from edgevit.util.optional import imported

COVERS = (
    "what the tensors of the model's graph need on any gate path: constants as stored, and activations live at once in "
    "the graph's order; not the process, to which OpenVINO adds packed weights, scratch, code: that is measured"
)
COUNT = re.compile(r"merge\..*/more_pairs")
# Operations whose outputs are the caller's memory or the file's.
NO_TENSOR = ("Parameter", "Result", "Constant")


def bound(model: Path) -> BoundDetail:
    """Bound the tensors of an IR (`model.xml`, `model.bin` beside it).

    Raises:
        BoundError: the IR cannot be read, or a shape in it is not fixed.
        RuntimeMissingError: OpenVINO is not installed.
    """
    openvino = imported("openvino", "pip install 'edgevit[openvino]'")
    try:
        read = openvino.Core().read_model(model)
    except RuntimeError as error:
        raise BoundError(f"OpenVINO cannot read {model}, whose memory is to be bound: {error}") from error
    # Each size is linear or a square in every count, so their sum is largest where each is least or most.
    found = [_bound(_counted(read, corner)) for corner in _corners(read)]
    return max(found, key=lambda each: each.bound.bound_bytes)


def _corners(model: Any) -> list[dict[str, int]]:
    """Return the least and the most of every number that a run counts, in all combinations; without any, none once."""
    most = {o.get_friendly_name(): _most(o) for o in model.get_ordered_ops() if COUNT.fullmatch(o.get_friendly_name())}
    return [dict(zip(most, chosen, strict=True)) for chosen in product(*((0, value) for value in most.values()))]


def _most(count: Any) -> int:
    """Return the sum of all steps that a count can take; of those that a table has for some rows the most."""
    steps = count.input_value(0).get_node().input_value(1).get_node()
    if steps.get_type_name() == "Gather":
        steps = steps.input_value(0).get_node()
    return int(steps.get_data().sum(axis=-1).max())


def _counted(model: Any, counts: Mapping[str, int]) -> Any:
    """Return the model of a run that counts so: all its shapes are known."""
    import openvino

    known = model.clone()
    for operation in known.get_ordered_ops() if counts else ():
        if operation.get_friendly_name() in counts:
            value = np.array([counts[operation.get_friendly_name()]], np.int64)
            operation.output(0).replace(openvino.opset13.constant(value).output(0))
    known.validate_nodes_and_infer_types()
    return known


def _bound(read: Any) -> BoundDetail:
    main = _frame(read)
    weights = main.weights
    activations = max((step.live + max((b.peak for b in step.bodies), default=0) for step in main.steps), default=0)
    io = sum(_nbytes(port) for port in (*read.inputs, *read.outputs))
    return BoundDetail(
        bound=MemoryBound(
            bound_bytes=weights + activations + io,
            weights_bytes=weights,
            activations_bytes=activations,
            scratch_bytes=0,
            io_bytes=io,
            proven=False,  # the process holds more
            covers=COVERS,
        ),
        main_frame_bytes=main.peak,
        branches=tuple(
            (step.node.removesuffix("/y"), step.bodies[0].peak, step.bodies[1].peak)
            for step in main.steps
            if step.bodies
        ),
        timeline=tuple((node, weights + live) for node, live in _timeline(main)),
    )


@dataclass(frozen=True)
class _Step:
    node: str
    live: int
    bodies: tuple[_Graph, ...]


@dataclass(frozen=True)
class _Graph:
    """One graph of the IR: bytes of its own constants, and its steps with the bytes live in each."""

    constants: int
    steps: tuple[_Step, ...]

    @property
    def peak(self) -> int:
        return max((step.live for step in self.steps), default=0)

    @property
    def weights(self) -> int:
        return self.constants + sum(body.weights for step in self.steps for body in step.bodies)


def _timeline(main: _Graph) -> Iterator[tuple[str, int]]:
    for step in main.steps:
        for inner in step.bodies[:1]:
            yield from ((s.node, step.live + s.live) for s in inner.steps)
        yield step.node, step.live


def _frame(model: Any) -> _Graph:
    operations = model.get_ordered_ops()
    fixed = _constant_expressions(operations)
    own = [o for o in operations if o.get_type_name() not in NO_TENSOR and o.get_friendly_name() not in fixed]
    last = {name: i for i, o in enumerate(own) for name in _sources(o)}
    # What a Result takes is held to the end: it is the graph's output.
    last |= {name: len(own) for o in operations if o.get_type_name() == "Result" for name in _sources(o)}
    alive: dict[str, int] = {}
    steps = []
    for index, operation in enumerate(own):
        name = operation.get_friendly_name()
        alive[name] = sum(_nbytes(port) for port in operation.outputs())
        bodies: tuple[_Graph, ...] = ()
        if operation.get_type_name() == "If":
            bodies = _frame(operation.get_then_body()), _frame(operation.get_else_body())
        steps.append(_Step(name, sum(alive.values()), bodies))
        alive = {held: size for held, size in alive.items() if last.get(held, index) > index}
    return _Graph(
        constants=sum(_nbytes(o.output(0)) for o in operations if o.get_type_name() == "Constant"),
        steps=tuple(steps),
    )


def _constant_expressions(operations: list[Any]) -> set[str]:
    """Return operations that depend on constants only; the plugin computes them once while it compiles."""
    fixed: set[str] = set()
    for operation in operations:
        sources = _sources(operation)
        if operation.get_type_name() != "Parameter" and all(source in fixed for source in sources):
            fixed.add(operation.get_friendly_name())
    return fixed


def _sources(operation: Any) -> list[str]:
    return [port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()]


def _nbytes(port: Any) -> int:
    if port.get_partial_shape().is_dynamic:
        name = port.get_node().get_friendly_name()
        raise BoundError(f"the shape of {name} is not fixed, so its memory has no bound")
    bits: int = port.get_element_type().bitwidth
    count: int = math.prod(port.get_shape())
    return count * bits // 8
