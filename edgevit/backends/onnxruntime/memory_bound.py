"""Upper bound on what ONNX Runtime's arena holds for a model, over every gate path, from its own optimised graph.

It holds for sessions configured as `edgevit.backends.onnxruntime.memory` says: CPU provider, sequential execution, no
reuse of dead buffers, no memory pattern, an arena that splits every chunk to size. Why it is a bound there:

1. One node runs at a time (sequential executor), nodes of a graph in the order of the optimised file.
2. Without buffer reuse the planner (allocation_planner.cc, `ComputeReusePlan`) gives every tensor its own buffer when
   its node starts and frees it after the node of its last use. Two exceptions: a view (`Reshape`, ...) shares its
   input's buffer, which then lives as long as the last of both; a kernel registered to work in place takes over an
   input of the same shape and size that dies there. Overlooking the second only makes the bound larger; it is assumed
   for the kernels in `frames.IN_PLACE`.
3. The arena counts a buffer with its size rounded up to 256 bytes, and no more, because chunks are split to size.
4. `If` allocates its outputs in the frame of the graph it stands in, then runs one body. A body's own tensors are all
   freed when it ends; what it reads from outside stays alive through the `If`. Ifs are never nested here. So at any
   moment the activations are those live in the main graph plus those live in one body, and the maximum over the main
   graph's nodes of (live there + the larger of the two bodies' peaks) covers all 2^gates paths.
5. Weights do not depend on the path. A constant matrix that is the second operand of a product, float or int8, is
   packed into the arena and its original is released (from an `.ort` file it stays mapped); constants of at most 127
   bytes are copied into the arena, where they stay even if they are packed; others stay where they were loaded (a
   mapped file, or the heap). Packed sizes are those of MLAS, the runtime's matrix library, on x86-64 with AVX2 or
   better; other CPUs pack otherwise, and nothing here is proven for them.
6. No kernel in `shapes.RULES` takes arena memory inside its node. But while the model loads, packing an int8 weight
   stored `[out, in]` first copies it to `[in, out]` (matmul_integer_base.h, `PrePack`), into the arena's chunks and not
   beside them like the packed weight. One weight is packed at a time, so loading has at most all weights and the
   largest of these copies in use. With few tokens that is more than any run needs: `scratch_bytes` is what it is more.
7. The outputs of the previous run may still be held by the caller; those of earlier runs are assumed dropped.
8. Gaps: `placement` replays where the arena puts every buffer, over all paths and run after run.
9. Where the number of tokens follows the image, every size is the largest there can be: its limits follow from the
   nodes that count (`shapes`). An `If` then allocates its outputs as its body makes them. Gaps are replayed for every
   sequence of counts (`stages`), from an arena that holds no outputs of rule 7: the runners copy them.

Each rule that comes from reading the runtime's source is held against the runtime by the verifier: `check_bound`
compares not only peaks but the bytes in use after every node, branch bodies included, of every measured run.

Not in the bound: code and libraries, the graph's own description, thread stacks, and outside the arena the weights'
originals while they are packed. Those are measured (a fresh process's peak) and shown apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgevit.backends.onnxruntime import memory
from edgevit.backends.onnxruntime.frames import Frame, main_frame, rounded
from edgevit.backends.onnxruntime.placement import room_for_any, room_needed
from edgevit.backends.onnxruntime.shapes import constant
from edgevit.backends.onnxruntime.stages import stages
from edgevit.errors import BoundError
from edgevit.schema.memory_bound import BoundDetail, MemoryBound
from edgevit.util.atomic import scratch

SMALL_CONSTANT_BYTES = 127
# Sequences of counts whose placements are replayed: 20 thousand in a second. Each passes gates on many ways.
MOST_RUNS, MOST_GATED_RUNS = 200_000, 1_500
INLINE_BYTES = 1 << 14  # constants whose numbers may matter for sizes
# Operator: the input that is packed when it is a constant matrix.
PACKED: Mapping[str, int] = {
    **{"Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1},
    **{"QGemm": 3, "MatMulIntegerToFloat": 1},
}
COVERS = (
    "what ONNX Runtime's arena has in use while the model loads and at any moment of a run over any gate path, plus "
    "the constants outside it and the input, on x86-64 with AVX2 or better"
)


def bound(model: onnx.ModelProto | Path, weights: Mapping[str, np.ndarray] | None = None) -> BoundDetail:
    """Bound the memory of a lowered model (in memory, or `model.onnx` with its data beside it).

    `weights` are the large initialisers of a model in memory that only names them.

    Raises:
        BoundError: an operator without a shape rule, or a shape that is not fixed.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    return bound_of_graph(optimised(model, weights))


def optimised(model: onnx.ModelProto | Path, weights: Mapping[str, np.ndarray] | None = None) -> onnx.GraphProto:
    """Return the graph as ONNX Runtime will run it, branch bodies included; large constants without their data."""
    runtime = memory.runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if weights:
        values = [runtime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    with scratch() as folder:
        path = folder / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "data")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(INLINE_BYTES)
        )
        options.add_session_config_entry("session.disable_prepacking", "1")
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no base class of their own
            raise BoundError(f"ONNX Runtime cannot load the model whose memory is to be bound: {error}") from error
        return onnx.load(path, load_external_data=False).graph


def bound_of_graph(graph: onnx.GraphProto) -> BoundDetail:
    """Return the bound of an optimised graph; see the module for what it covers."""
    weights = _weights(graph)
    main = main_frame(graph)
    # A caller may hold one run's outputs while the next runs.
    outputs = sum(size for _, size in main.results)
    base = weights.arena + outputs
    timeline: list[tuple[str, int]] = []
    skipped: list[tuple[str, int]] = []
    activations = 0
    for step, live in zip(main.steps, main.live, strict=True):
        for body, line in zip(step.bodies, (timeline, skipped), strict=False):
            line += [(s.node, base + live + own) for s, own in zip(body.steps, body.live, strict=True)]
        timeline.append((step.node, base + live))
        activations = max(activations, live + max((body.peak for body in step.bodies), default=0))
    running, loading = outputs + activations, main.copied + rounded(weights.copy)
    in_use = max(running, loading)
    room = max(_room(graph, main, running), loading)
    initialised = {t.name for t in graph.initializer}
    inputs = sum(main.values[v.name].nbytes for v in graph.input if v.name not in initialised)
    arena = weights.arena + room
    return BoundDetail(
        bound=MemoryBound(
            bound_bytes=arena + weights.other + inputs,
            weights_bytes=weights.arena + weights.other,
            activations_bytes=activations,
            scratch_bytes=in_use - running,
            io_bytes=inputs + outputs,
            fragmentation_bytes=room - in_use,
            arena_bytes=arena,
            proven=True,
            covers=COVERS,
        ),
        arena_weights_bytes=weights.arena,
        main_frame_bytes=main.peak,
        branches=tuple((s.node.removesuffix("/y"), s.bodies[0].peak, s.bodies[1].peak) for s in main.steps if s.bodies),
        timeline=tuple(timeline),
        skipped=tuple(skipped),
    )


def _room(graph: onnx.GraphProto, main: Frame, running: int) -> int:
    """Return bytes in one piece that the buffers of a run need, whatever it counts."""
    found = stages(graph, main, MOST_GATED_RUNS if any(step.bodies for step in main.steps) else MOST_RUNS)
    if not found:
        return room_for_any(main)
    return room_needed(main, running, found if len(found) > 1 else ())


@dataclass(frozen=True)
class _Weights:
    """Bytes of constants once the model is loaded, in the arena and elsewhere; the largest copy made to pack one."""

    arena: int
    other: int
    copy: int


@dataclass(frozen=True)
class _Packed:
    """A constant operand that is packed: its packed size, and that of the copy it is packed from, 0 if from itself."""

    size: int
    copy: int


def _weights(graph: onnx.GraphProto) -> _Weights:
    packed: dict[str, _Packed] = {}
    held = list(_constants(graph, "", {}, packed))
    small = sum(size for _, size in held if size <= SMALL_CONSTANT_BYTES)
    other = sum(size for key, size in held if key not in packed and size > SMALL_CONSTANT_BYTES)
    return _Weights(
        arena=sum(p.size for p in packed.values()) + small,
        other=other,
        copy=max((p.copy for p in packed.values()), default=0),
    )


def _constants(
    graph: onnx.GraphProto, where: str, outer: Mapping[str, tuple[str, onnx.TensorProto]], packed: dict[str, _Packed]
) -> Iterator[tuple[str, int]]:
    """Yield every constant as (unique key, bytes); those that are packed are entered in `packed`."""
    own = {t.name: (f"{where}/{t.name}", t) for t in graph.initializer}
    yield from ((key, constant(t).nbytes) for key, t in own.values())
    # An input with a default may be overridden, so it is never packed.
    scope = dict(outer) | {name: entry for name, entry in own.items() if name not in {v.name for v in graph.input}}
    for node in graph.node:
        index = PACKED.get(node.op_type)
        if index is not None and node.input[index] in scope:
            key, tensor = scope[node.input[index]]
            if len(tensor.dims) == 2:
                packed[key] = _packed(node, tensor)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _constants(attribute.g, f"{where}/{node.name}/{attribute.name}", scope, packed)


def _packed(node: onnx.NodeProto, tensor: onnx.TensorProto) -> _Packed:
    int8 = node.op_type in ("QGemm", "MatMulIntegerToFloat")
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    columns, rows = tensor.dims if transposed else tensor.dims[::-1]
    return _Packed(packed_bytes(rows, columns, int8=int8), rows * columns if int8 and transposed else 0)


def packed_bytes(rows: int, columns: int, *, int8: bool) -> int:
    """Return the size of a packed `[rows, columns]` operand, as MLAS computes it for x86-64 with AVX2 or better.

    Columns come in panels of 16. int8: rows padded to 64 (AMX; AVX2 and VNNI pad to 4), and a column sum in int32.
    """
    panel = math.ceil(columns / 16) * 16
    return panel * math.ceil(rows / 64) * 64 + 4 * panel if int8 else 4 * panel * rows
