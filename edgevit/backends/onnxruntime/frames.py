"""What each graph of a model allocates and frees, node by node, in ONNX Runtime's order; see `memory_bound`.

Where sizes are computed while the model runs, a frame has the largest there can be; `stages` has those of every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx

from edgevit.backends.onnxruntime.shapes import Value, constant, declared, infer
from edgevit.errors import BoundError

ALIGN_BYTES = 256
VIEWS = ("Reshape", "Squeeze", "Unsqueeze")
# Operator: the inputs whose buffer its output may take over, in the order the planner tries them.
IN_PLACE: Mapping[str, tuple[int, ...]] = {"Softmax": (0,), "Cast": (0,), "Relu": (0,)}


@dataclass(frozen=True)
class Step:
    """One node: the buffers (name, rounded bytes) it allocates, those freed after it, and the two bodies of an If.

    The outputs of an If whose shapes are known only when the model runs are allocated `late`: not before its body
    starts, but by the body's node that `makes` the output of that number.
    """

    node: str
    allocates: tuple[tuple[str, int], ...]
    frees: tuple[str, ...]
    bodies: tuple[Frame, ...] = ()
    late: bool = False
    makes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One graph: its steps, what it keeps to the end, and the bytes of its own tensors live during each step.

    `results` are its outputs' buffers (name, rounded bytes); `copied` the bytes of outputs that are constants, of
    which the runtime keeps a second copy for as long as the model is loaded.
    """

    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    results: tuple[tuple[str, int], ...]
    copied: int

    @property
    def live(self) -> tuple[int, ...]:
        held: dict[str, int] = {}
        live = []
        for step in self.steps:
            held |= dict(step.allocates)
            live.append(self.copied + sum(held.values()))
            held = {name: size for name, size in held.items() if name not in step.frees}
        return tuple(live)

    @property
    def peak(self) -> int:
        return max(self.live, default=0)


def main_frame(graph: onnx.GraphProto) -> Frame:
    """Return the frame of a model's main graph at the largest sizes there can be, those of its Ifs in its steps."""
    return _frame(graph, {v.name: declared(v) for v in graph.input}, body=False)


def rounded(size: int) -> int:
    """Return bytes that the arena counts for a buffer."""
    return math.ceil(size / ALIGN_BYTES) * ALIGN_BYTES


class _Lifetimes:
    """Which buffer every tensor of one graph lives in, and until which node."""

    def __init__(self, graph: onnx.GraphProto, fixed: set[str]) -> None:
        self.fixed = fixed
        self.outputs = {o.name for o in graph.output}
        self.owner: dict[str, str] = {}
        self.end: dict[str, int] = {}
        self._count = len(graph.node)
        self._last = {name: step for step, node in enumerate(graph.node) for name in _read(node)}

    def add(self, name: str, step: int, taken: str | None) -> None:
        self.owner[name] = taken or name
        # What nobody reads, such as the values of a TopK whose indices are wanted, is never freed while the graph runs.
        end = self._count if name in self.outputs else self._last.get(name, self._count)
        self.end[self.owner[name]] = max(self.end.get(self.owner[name], step), end)

    def taken_over(self, node: onnx.NodeProto, name: str, step: int, values: Mapping[str, Value]) -> str | None:
        """The buffer that output `name` shares, if any: a view's, or a dying input's of the same shape and size."""
        if name in self.outputs:
            return None
        if node.op_type in VIEWS:
            source = str(node.input[0])
            return self.owner.get(source, source)
        value = values[name]
        for index in IN_PLACE.get(node.op_type, ()):
            source = str(node.input[index])
            same = (values[source].shape, values[source].nbytes) == (value.shape, value.nbytes)
            # The planner takes over what it knows to be of the same shape before the model runs.
            if same and not value.varies and source not in self.fixed and self.end[self.owner[source]] == step:
                return self.owner[source]
        return None


def _frame(graph: onnx.GraphProto, outside: Mapping[str, Value], *, body: bool) -> Frame:
    values = dict(outside) | {t.name: constant(t) for t in graph.initializer}
    lives = _Lifetimes(graph, set(values))
    steps: list[Step] = []
    held: set[str] = set()
    for index, node in enumerate(graph.node):
        bodies = tuple(_frame(inner, values, body=True) for inner in bodies_of(node))
        allocates = []
        for name, value in zip(node.output, results(node, bodies, values), strict=True):
            if not name:
                continue
            values[name] = value
            taken = lives.taken_over(node, name, index, values)
            lives.add(name, index, taken)
            # The outputs of a body belong to the graph its If stands in.
            if taken is None and not (body and name in lives.outputs):
                allocates.append((name, rounded(value.nbytes)))
        held |= {name for name, _ in allocates}
        frees = tuple(name for name in sorted(held) if lives.end[name] <= index)
        held -= set(frees)
        made = tuple(i for i, output in enumerate(graph.output) if body and output.name in node.output)
        steps.append(Step(node.name, tuple(allocates), frees, bodies, bool(bodies) and _late(node), made))
    outputs = tuple((o.name, rounded(values[o.name].nbytes)) for o in graph.output)
    copied = 0 if body else sum(size for name, size in outputs if name in lives.fixed)
    return Frame(tuple(steps), values, tuple(r for r in outputs if r[0] not in lives.fixed), copied)


def bodies_of(node: onnx.NodeProto) -> tuple[onnx.GraphProto, ...]:
    """Return the two bodies of an If, none of any other node.

    Raises:
        BoundError: a body holds another If.
    """
    if node.op_type != "If":
        return ()
    graphs = {a.name: a.g for a in node.attribute}
    if any(inner.op_type == "If" for g in graphs.values() for inner in g.node):
        raise BoundError(f"{node.name} holds another If; the bound knows Ifs in sequence only")
    return graphs["then_branch"], graphs["else_branch"]


def results(
    node: onnx.NodeProto, bodies: tuple[Frame, ...], values: Mapping[str, Value], *, exact: bool = False
) -> tuple[Value, ...]:
    """Return the outputs of a node; `exact`: those of one run, from its inputs' in that run."""
    if not bodies:
        return infer(node, values, exact=exact)
    graphs = bodies_of(node)
    pairs = [(body.values[o.name], graph) for body, graph in zip(bodies, graphs, strict=True) for o in graph.output]
    varies = any(value.varies for value, _ in pairs)
    sides = [[replace(v, data=None, least=None, varies=varies) for v, g in pairs if g is graph] for graph in graphs]
    if sides[0] != sides[1]:
        raise BoundError(f"the two bodies of {node.name} give different shapes")
    return tuple(sides[0])


def _late(node: onnx.NodeProto) -> bool:
    """Return whether an If's outputs have no fixed shape, so that they are allocated by what makes them."""
    outputs = [o for a in node.attribute if a.HasField("g") for o in a.g.output]
    return any(not dim.HasField("dim_value") for o in outputs for dim in o.type.tensor_type.shape.dim)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every tensor a node reads, itself or inside its bodies."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from _read(inner)
