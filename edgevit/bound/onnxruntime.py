"""Upper bound on what ONNX Runtime's arena holds for a model, over every gate path, from its own optimised graph.

It holds for sessions configured as `edgevit.ortmemory` says: CPU provider, sequential execution, no reuse of dead
buffers, no memory pattern, an arena that splits every chunk to size. Why it is a bound there:

1. One node runs at a time (sequential executor), nodes of a graph in the order of the optimised file.
2. Without buffer reuse the planner (allocation_planner.cc, `ComputeReusePlan`) gives every tensor its own buffer when
   its node starts and frees it after its last use. Exceptions only lower the sum: a view (`Reshape`, ...) shares its
   input's buffer, which then lives as long as the last of both; an operator that may work in place takes over an input
   of the same size that dies there. In place is assumed only for the kernels in IN_PLACE, which are registered so.
3. The arena counts a buffer with its size rounded up to 256 bytes, and no more, because chunks are split to size.
4. `If` allocates its outputs in the frame of the graph it stands in, then runs one body. A body's own tensors are a
   frame of its own, all freed when the body ends; what it reads from outside stays alive through the `If`. Ifs are never
   nested here. So at any moment the activations are those live in the main graph plus those live in one body, and the
   maximum over the main graph's nodes of (live there + the larger of the two bodies' peaks) covers all 2^gates paths.
5. Weights do not depend on the path. A constant second operand of Gemm, QGemm or a 2-D MatMul is packed into the arena
   and its original is released; constants of at most 127 bytes are copied into the arena; others stay where they were
   loaded (a mapped file, or the heap).
6. None of the kernels in `shapes.RULES` takes arena memory inside a node. The verifier would see it: it compares every
   node of every measured run with the bound's figure for that node.

Not in the bound: code and libraries, the graph's own description, thread stacks and the peak while loading. Those are
measured (a fresh process's peak) and shown apart.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgevit import ortmemory
from edgevit.bound.result import Bound
from edgevit.bound.shapes import Value, constant, declared, infer
from edgevit.errors import BoundError

ALIGN_BYTES = 256
SMALL_CONSTANT_BYTES = 127
VIEWS = ("Reshape", "Squeeze", "Unsqueeze")
# Operator: the inputs whose buffer its first output may take over, in the order the planner tries them.
IN_PLACE: Mapping[str, tuple[int, ...]] = {
    "Softmax": (0,),
    "Cast": (0,),
}
# Operator: the input that is packed when it is a constant matrix.
PACKED: Mapping[str, int] = {"Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1, "QGemm": 3}
PROVEN = (
    "what ONNX Runtime's arena has in use, plus the constants outside it and the input, at any moment of a run over "
    "any gate path"
)


def bound(model: onnx.ModelProto | Path) -> Bound:
    """Bound the memory of a lowered model (in memory, or `model.onnx` with its data beside it).

    Raises:
        BoundError: an operator without a shape rule, or a shape that is not fixed.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    return bound_of_graph(optimised(model))


def optimised(model: onnx.ModelProto | Path) -> onnx.GraphProto:
    """The graph as ONNX Runtime will run it, branch bodies included; large constants without their data."""
    runtime = ortmemory.runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.add_session_config_entry("session.disable_prepacking", "1")
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no base class of their own
            raise BoundError(f"ONNX Runtime cannot load the model whose memory is to be bound: {error}") from error
        return onnx.load(path, load_external_data=False).graph


def bound_of_graph(graph: onnx.GraphProto) -> Bound:
    """The bound of an optimised graph; see the module for what it covers."""
    arena_weights, other_weights = _weights(graph)
    values = {v.name: declared(v) for v in graph.input}
    main = _frame(graph, values)
    bodies = {node.name: _bodies(node, main.values) for node in graph.node if node.op_type == "If"}
    outputs = sum(_rounded(main.values[o.name].nbytes) for o in graph.output)
    timeline: list[tuple[str, int]] = []
    activations = main_peak = 0
    for node, live in zip(graph.node, main.live, strict=True):
        inner = bodies.get(node.name)
        if inner:
            timeline += [(n, arena_weights + live + own) for n, own in inner[0].named(node)]
        timeline.append((node.name, arena_weights + live))
        main_peak = max(main_peak, live)
        activations = max(activations, live + (max(b.peak for b in inner) if inner else 0))
    initialised = {t.name for t in graph.initializer}
    inputs = sum(v.nbytes for name, v in values.items() if name not in initialised)
    # The outputs are tensors of the main frame too: counted once, as io.
    arena = arena_weights + activations
    return Bound(
        runtime="onnxruntime",
        proven=PROVEN,
        weights_bytes=arena_weights + other_weights,
        arena_weights_bytes=arena_weights,
        activations_bytes=activations - outputs,
        scratch_bytes=0,
        fragmentation_bytes=0,
        io_bytes=inputs + outputs,
        arena_bytes=arena,
        total_bytes=arena + other_weights + inputs,
        main_frame_bytes=main_peak,
        branches=tuple((name, then.peak, other.peak) for name, (then, other) in bodies.items()),
        timeline=tuple(timeline),
    )


@dataclass(frozen=True)
class Frame:
    """Bytes live in one graph while each of its nodes runs, and every tensor it can see."""

    names: tuple[str, ...]
    live: tuple[int, ...]
    values: Mapping[str, Value]

    @property
    def peak(self) -> int:
        return max(self.live, default=0)

    def named(self, owner: onnx.NodeProto) -> Iterator[tuple[str, int]]:
        yield from zip(self.names, self.live, strict=True)


def _bodies(node: onnx.NodeProto, outside: Mapping[str, Value]) -> tuple[Frame, Frame]:
    graphs = {a.name: a.g for a in node.attribute}
    then, other = (_frame(graphs[key], outside, body=True) for key in ("then_branch", "else_branch"))
    return then, other


def _frame(graph: onnx.GraphProto, outside: Mapping[str, Value], *, body: bool = False) -> Frame:
    """Lifetimes of the tensors a graph allocates; a body's outputs belong to the graph its `If` stands in."""
    values = dict(outside) | {t.name: constant(t) for t in graph.initializer}
    fixed = set(values)
    outputs = {o.name for o in graph.output}
    last = _last_uses(graph)
    owner: dict[str, str] = {}
    alive: dict[str, int] = {}
    sizes: dict[str, int] = {}
    # An output that is a constant is copied into a buffer of its own for the whole run.
    copied = 0 if body else sum(_rounded(values[name].nbytes) for name in outputs & fixed)
    live = []
    for step, node in enumerate(graph.node):
        for name, value in zip(node.output, _results(node, values), strict=True):
            if not name:
                continue
            values[name] = value
            taken = _taken_over(node, name, step, values, owner, alive, fixed, outputs)
            owner[name] = taken or name
            if owner[name] in fixed or (body and name in outputs):
                continue
            if not taken:
                sizes[name] = _rounded(value.nbytes)
            end = len(graph.node) if name in outputs else last.get(name, step)
            alive[owner[name]] = max(alive.get(owner[name], step), end)
        live.append(copied + sum(sizes[o] for o in alive))
        alive = {o: end for o, end in alive.items() if end > step}
    return Frame(tuple(n.name for n in graph.node), tuple(live), values)


def _results(node: onnx.NodeProto, values: Mapping[str, Value]) -> tuple[Value, ...]:
    if node.op_type != "If":
        return infer(node, values)
    bodies = _bodies(node, values)
    graphs = [a.g for a in node.attribute if a.HasField("g")]
    if any(n.op_type == "If" for g in graphs for n in g.node):
        raise BoundError(f"{node.name} holds another If; the bound knows Ifs in sequence only")
    first, second = (
        [b.values[o.name] for o in {a.name: a.g for a in node.attribute}[key].output]
        for b, key in zip(bodies, ("then_branch", "else_branch"), strict=True)
    )
    if [(v.shape, v.kind) for v in first] != [(v.shape, v.kind) for v in second]:
        raise BoundError(f"the two bodies of {node.name} give different shapes")
    return tuple(Value(v.shape, v.kind) for v in first)


def _last_uses(graph: onnx.GraphProto) -> dict[str, int]:
    """Index of the last node that reads each tensor, itself or from inside its bodies."""
    return {name: step for step, node in enumerate(graph.node) for name in _read(node)}


def _read(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from _read(inner)


def _taken_over(
    node: onnx.NodeProto,
    name: str,
    step: int,
    values: Mapping[str, Value],
    owner: Mapping[str, str],
    alive: Mapping[str, int],
    fixed: set[str],
    outputs: set[str],
) -> str | None:
    """The buffer that output `name` shares, if any: a view's, or a dying input's of the same shape and size."""
    if name in outputs:
        return None
    if node.op_type in VIEWS:
        return owner.get(node.input[0], node.input[0])
    value = values[name]
    for index in IN_PLACE.get(node.op_type, ()):
        source = node.input[index]
        if source in fixed or (values[source].shape, values[source].nbytes) != (value.shape, value.nbytes):
            continue
        if alive.get(owner[source]) == step:
            return owner[source]
    return None


def _weights(graph: onnx.GraphProto) -> tuple[int, int]:
    """Bytes of constants (in the arena, elsewhere) once the model is loaded."""
    packed: dict[str, int] = {}
    held = list(_constants(graph, "", {}, packed))
    small = sum(size for key, size in held if key not in packed and size <= SMALL_CONSTANT_BYTES)
    other = sum(size for key, size in held if key not in packed and size > SMALL_CONSTANT_BYTES)
    return sum(packed.values()) + small, other


def _constants(
    graph: onnx.GraphProto, where: str, outer: Mapping[str, tuple[str, onnx.TensorProto]], packed: dict[str, int]
) -> Iterator[tuple[str, int]]:
    """Every constant as (unique key, bytes); those that are packed are entered in `packed` with their packed size."""
    own = {t.name: (f"{where}/{t.name}", t) for t in graph.initializer}
    yield from ((key, constant(t).nbytes) for key, t in own.values())
    # An input with a default may be overridden, so it is never packed.
    scope = dict(outer) | {name: entry for name, entry in own.items() if name not in {v.name for v in graph.input}}
    for node in graph.node:
        index = PACKED.get(node.op_type)
        if index is not None and node.input[index] in scope:
            key, tensor = scope[node.input[index]]
            if len(tensor.dims) == 2:
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                columns, rows = tensor.dims if transposed else tensor.dims[::-1]
                packed[key] = packed_bytes(rows, columns, int8=node.op_type == "QGemm")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _constants(attribute.g, f"{where}/{node.name}/{attribute.name}", scope, packed)


def packed_bytes(rows: int, columns: int, *, int8: bool) -> int:
    """Size of a packed `[rows, columns]` operand, as MLAS computes it for x86-64 with AVX2 or better.

    Columns come in panels of 16. int8: rows padded to 64 (AMX; AVX2 and VNNI pad to 4), and a column sum in int32.
    """
    panel = math.ceil(columns / 16) * 16
    return panel * math.ceil(rows / 64) * 64 + 4 * panel if int8 else 4 * panel * rows


def _rounded(size: int) -> int:
    return math.ceil(size / ALIGN_BYTES) * ALIGN_BYTES
