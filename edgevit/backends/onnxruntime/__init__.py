"""ONNX Runtime: `model.onnx` with its weights beside it, and the same as one `.ort` file.

Loading prefers `model.onnx`, whose optimisation at load time suits the CPU at hand; a fresh process of an int8 ViT-Ti
peaks at 74 MB, 39 of them mapped files. `.ort` is for runtime builds that read no ONNX: 73 MB, same latency. It is
saved at the level EXTENDED, the last that does not bake the build machine's memory layout in, and has 8-bit weights
saturate on CPUs without VNNI.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends import NO_TOKENS, Answer, Source, Start
from edgevit.backends.inputs import feed
from edgevit.backends.onnxruntime import memory
from edgevit.backends.onnxruntime.ort_format import canonical
from edgevit.backends.refusals import (
    refuse_search,
    refused_attention,
    refused_cpu,
    refused_formats,
    refused_precision,
    refused_products,
)
from edgevit.errors import BundleError, OutputError
from edgevit.util.atomic import scratch
from edgevit.util.machines import lacks_vnni
from edgevit.util.optional import imported
from edgevit.util.strict_json import utf8, write_atomic

if TYPE_CHECKING:
    import onnx

    from edgevit.measure.branch_times import Trace
    from edgevit.schema.target import Target

NAME = "onnxruntime"
MODEL, DATA, ORT_MODEL = "model.onnx", "model.onnx.data", "model.ort"
FILES: Mapping[str, str] = {"onnx": MODEL, "ort": ORT_MODEL}
FORMATS = tuple(FILES)
BESIDE: tuple[str, ...] = (DATA,)
PACKAGES: tuple[str, ...] = ("onnxruntime",)
INSTALL = "pip install edgevit"
WHEELS = PACKAGES
NATIVE = False
READS_ONNX = True
MERGES = True
FOLLOWING_COSTS = ""
LARGE_BYTES = 1024
ALIGN_BYTES = 64
INT8_OPS = ("QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
FLOAT_OPS = ("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "MatMulNBits")


class OnnxRuntimeRunner:
    """A session of one model; see `edgevit.backends.Runner`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = {i.name: i for i in [*session.get_inputs(), *session.get_overridable_initializers()]}
        self._shape = tuple(inputs["image"].shape)
        self._gated = "effort" in inputs
        self._counts = any(output.name == "tokens" for output in session.get_outputs())

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        answer = self.answer(image, effort)
        return answer.logits, answer.gates

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        inputs = feed(image, effort, shape=self._shape, gated=self._gated)
        if not self._counts:
            logits, gates = self._session.run(["logits", "gates"], inputs)
            return Answer(logits, gates, NO_TOKENS)
        # Copied: outputs that are held lie in the arena, and its bound knows of none where sizes follow the image.
        logits, gates, tokens = map(np.array, self._session.run(["logits", "gates", "tokens"], inputs))
        return Answer(logits, gates, tokens)

    def close(self) -> None:
        self._session = None


def versions() -> dict[str, str]:
    return {"onnxruntime": str(_runtime().__version__)}


def refused(target: Target) -> tuple[str, ...]:
    return (
        *refused_formats(target, FILES),
        *refused_precision(target),
        *refused_attention(target),
        *refused_products(target),
        *refused_cpu(target),
    )


def lacking(target: Target, *, installed: bool) -> tuple[str, ...]:
    return ()


def require(target: Target, tune_s: float = 0.0) -> None:
    versions()
    refuse_search(target, tune_s)


def build(source: Source, folder: Path) -> tuple[str, ...]:
    return compile(source.model, folder, formats=source.target.formats, arch=source.target.arch)


def compile(
    model: onnx.ModelProto, folder: Path, *, formats: Sequence[str] = FORMATS, arch: str = ""
) -> tuple[str, ...]:
    """Write `model.onnx` and `model.onnx.data`, and `model.ort`, as `formats` asks, for a CPU of `arch`.

    Raises:
        OutputError: the disk refuses.
        RuntimeMissingError: ONNX Runtime is not installed (`ort` is written by it).
    """
    from edgevit.backends.onnxruntime.heads import fuse

    try:
        written: list[str] = []
        model = localise(fuse(model, arch=arch)[0])
        if "onnx" in formats:
            graph, data = externalise(model)
            write_atomic(folder / DATA, data)
            write_atomic(folder / MODEL, graph)
            written += [MODEL, DATA]
        if "ort" in formats:
            with scratch(folder) as temporary:
                path = temporary / ORT_MODEL
                _optimise(model, path, "ORT")
                write_atomic(folder / ORT_MODEL, canonical(path.read_bytes()))
            written.append(ORT_MODEL)
    except OSError as error:
        raise OutputError(f"cannot write the model into {folder}: {error.strerror or error}") from error
    return tuple(written)


def load(
    folder: Path, *, threads: int = 1, precision: str = "f32", file: str | None = None, weight_bits: int = 8
) -> OnnxRuntimeRunner:
    """Load `file`, else `model.onnx`, else `model.ort` of `folder`; `precision` can only be f32 here.

    Raises:
        BundleError: the file is missing or damaged.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    if precision != "f32":
        raise BundleError(f"ONNX Runtime keeps what is float in f32 on a CPU, got precision {precision!r}")
    configured = options(threads, weight_bits)
    # What the memory bound is proven for.
    memory.configure(configured)
    return OnnxRuntimeRunner(session(_model_file(folder, file), configured))


def linear_kernels(model: onnx.ModelProto, *, precision: str = "f32", arch: str = "") -> tuple[tuple[str, bool], ...]:
    """Return kernels of Linears in the optimised graph, If bodies included: (name of the weight, runs as int8)."""
    import onnx

    from edgevit.backends.onnxruntime.heads import fuse

    with scratch() as temporary:
        path = temporary / MODEL
        _optimise(localise(fuse(model, arch=arch)[0]), path, "ONNX")
        graph = onnx.load(path).graph
    found = []
    for node in _nodes(graph):
        weight = next((name for name in node.input if "/w" in name), None)
        if weight and node.op_type in (*INT8_OPS, *FLOAT_OPS):
            found.append((weight, node.op_type in INT8_OPS))
    return tuple(found)


def trace_branches(
    model: Path,
    images: np.ndarray,
    *,
    branches: Sequence[str],
    gated: Sequence[str],
    threads: int,
    precision: str,
    weight_bits: int,
) -> Trace:
    from edgevit.backends.onnxruntime import branch_times

    return branch_times.trace(model, images, options(threads, weight_bits), branches=branches, gated=gated)


def arena_peak(model: Path, image: np.ndarray, settings: Mapping[str, str], start: Start | None = None) -> int | None:
    from edgevit.backends.onnxruntime import arena

    measured = arena.measure_arena(model, image, settings=settings, start=start)
    return max(path.peak_bytes for path in measured)


def executed(
    folder: Path, image: np.ndarray, effort: float = 0.0, *, threads: int = 1
) -> tuple[tuple[tuple[str, str], ...], np.ndarray]:
    """Return the nodes that one run executes, in order, as (name, operator), from the runtime's profile; and its gates.

    Nodes inside a branch body appear exactly when the body ran.
    """
    events, answer = _profiled(folder, image, effort, threads)
    return tuple((e["name"].removesuffix(_KERNEL), e["args"]["op_name"]) for e in events), answer.gates


def kernel_macs(
    folder: Path, image: np.ndarray, effort: float = 0.0, *, threads: int = 1
) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Return MACs of the matrix kernels after the stem that one run executes, by name; and its gates and tokens.

    They follow from the shapes in the runtime's profile. Left out is what `program.macs` does not count: rows that
    stand in for a branch, outlier columns, sums of sizes and means over patches.
    """
    events, answer = _profiled(folder, image, effort, threads)
    found: dict[str, int] = {}
    for event in events:
        name = event["name"].removesuffix(_KERNEL)
        if event["args"]["op_name"] in (*INT8_OPS, *FLOAT_OPS) and not _UNCOUNTED.search(name):
            first, output = (_shape(event["args"][f"{side}_type_shape"][0]) for side in ("input", "output"))
            # `[..., rows, columns]` times what was summed over.
            found[name] = math.prod(output) * first[-1]
    return found, answer.gates, answer.tokens


_KERNEL = "_kernel_time"
_UNCOUNTED = re.compile(r"^stem|/(skipped|sums|y_out|row|mean)$")


def _shape(told: Mapping[str, list[int]]) -> list[int]:
    return next(iter(told.values()))


def _profiled(folder: Path, image: np.ndarray, effort: float, threads: int) -> tuple[list[dict[str, Any]], Answer]:
    """Run a model once and return its kernels in order, as the runtime's profile tells them, and what it answered."""
    with scratch() as temporary:
        configured = options(threads)
        configured.enable_profiling = True
        configured.profile_file_prefix = str(temporary / "run")
        profiled = session(_model_file(folder, None), configured)
        answer = OnnxRuntimeRunner(profiled).answer(image, effort)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    return sorted(nodes, key=lambda e: float(e["ts"])), answer


def localise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move int8 weights into the branch body that uses them.

    The pass that keeps int8 from saturating without VNNI (see `settings`) does not look beyond a node's own graph. As
    external data, weights in a body cost no second copy, only pages of the mapped file (6 MB for a ViT-Ti).
    """
    if not _bodies(model.graph):
        return model
    moved = type(model)()
    moved.CopyFrom(model)
    weights = {t.name: t for t in moved.graph.initializer if t.data_type == type(t).INT8}
    taken = set(_inputs(moved.graph))
    for body in _bodies(moved.graph):
        for name in dict.fromkeys(_inputs(body)):
            if name in weights and name not in taken:
                body.initializer.append(weights[name])
                taken.add(name)
                moved.graph.initializer.remove(weights[name])
    return moved


def externalise(model: onnx.ModelProto) -> tuple[bytes, bytes]:
    """Split a model into (graph, data): initialisers of >= 1 KB move to the data file, 64-byte aligned, in order."""
    graph = type(model)()
    graph.CopyFrom(model)
    data = bytearray()
    for tensor in _initialisers(graph):
        if len(tensor.raw_data) >= LARGE_BYTES:
            data += bytes(-len(data) % ALIGN_BYTES)
            start = len(data)
            data += tensor.raw_data
            tensor.ClearField("raw_data")
            _point(tensor, start, len(data) - start)
    return graph.SerializeToString(deterministic=True), bytes(data)


def written_bytes(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> int:
    """How many bytes `externalise` makes of a model whose large initialisers lie beside it; nothing is copied."""
    graph = type(model)()
    graph.CopyFrom(model)
    end = 0
    for tensor in _initialisers(graph):
        if tensor.name in weights:
            start, size = end + -end % ALIGN_BYTES, weights[tensor.name].nbytes
            _point(tensor, start, size)
            end = start + size
    return int(graph.ByteSize()) + end


def _initialisers(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [*model.graph.initializer, *(t for body in _bodies(model.graph) for t in body.initializer)]


def _point(tensor: onnx.TensorProto, start: int, size: int) -> None:
    """Say that a tensor's values lie in the data file."""
    tensor.ClearField("external_data")
    for key, value in (("location", DATA), ("offset", start), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = type(tensor).EXTERNAL


def options(threads: int = 1, weight_bits: int = 7) -> Any:
    """Return session options of every run, quiet about `effort` having a default."""
    configured = _runtime().SessionOptions()
    configured.intra_op_num_threads = threads
    configured.inter_op_num_threads = 1
    configured.log_severity_level = 3
    for key, value in entries(weight_bits).items():
        configured.add_session_config_entry(key, value)
    return configured


def settings(
    folder: Path | None = None, *, precision: str = "f32", weight_bits: int = 7, file: str | None = None
) -> dict[str, Any]:
    """Session configuration entries that hold on every CPU; for the bundle's own runner, beside `ortmemory`'s."""
    return {"session.intra_op.allow_spinning": "0"}  # spinning burns shared cores


def entries(weight_bits: int) -> dict[str, str]:
    """Return the session configuration entries that `load` sets on this CPU.

    Without VNNI the U8S8 kernel saturates; there 8-bit weights take slower, exact ones, which give the same outputs on
    any CPU but cost 1.6 times as much time where VNNI is.
    """
    exact = {"session.x64quantprecision": "1"} if weight_bits == 8 and lacks_vnni() else {}
    return settings() | exact


def session(source: str | bytes, configured: Any) -> Any:
    """Return a session of a model, in a file or in memory.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    runtime = _runtime()
    if isinstance(source, str) and source.endswith(".ort"):
        # The file is mapped and the weights stay in it: no second copy in memory.
        for key in ("use_memory_mapped_ort_model", "use_ort_model_bytes_for_initializers"):
            configured.add_session_config_entry(f"session.{key}", "1")
    try:
        return runtime.InferenceSession(source, configured, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base class of their own
        name = source if isinstance(source, str) else "the model"
        raise BundleError(f"ONNX Runtime {runtime.__version__} cannot load {name}: {error}") from error


def _optimise(model: onnx.ModelProto, path: Path, kind: str) -> None:
    configured = options()
    configured.graph_optimization_level = _runtime().GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    configured.optimized_model_filepath = str(path)
    configured.add_session_config_entry("session.save_model_format", kind)
    session(model.SerializeToString(), configured)


def _model_file(folder: Path, file: str | None) -> str:
    names = (file,) if file else (MODEL, ORT_MODEL)
    for name in names:
        if (folder / name).is_file():
            path = str(folder / name)
            if utf8(path) != path:
                raise BundleError(
                    f"{path}: ONNX Runtime opens no path that is not UTF-8; move the bundle, or use its .zip"
                )
            return path
    raise BundleError(f"{folder} has no {' or '.join(names)}")


def _bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    return [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]


def _inputs(graph: onnx.GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.input]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _runtime() -> Any:
    return imported(NAME, INSTALL)
