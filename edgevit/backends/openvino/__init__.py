"""OpenVINO: the IR, `model.xml` and `model.bin`, float32 where it is float, read and run on the CPU.

The precision hint is always set: OpenVINO's own default is bf16 on CPUs that have it.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends import NO_TOKENS, Answer, Source, Start
from edgevit.backends.inputs import feed
from edgevit.backends.refusals import refuse_search, refused_attention, refused_cpu, refused_formats, refused_products
from edgevit.errors import BundleError, OutputError
from edgevit.util.atomic import scratch
from edgevit.util.machines import lacks_vnni
from edgevit.util.optional import imported

if TYPE_CHECKING:
    import onnx

    from edgevit.measure.branch_times import Trace
    from edgevit.schema.target import Target

NAME = "openvino"
MODEL, DATA = "model.xml", "model.bin"
FILES: Mapping[str, str] = {"ir": MODEL}
FORMATS = tuple(FILES)
BESIDE: tuple[str, ...] = (DATA,)
PACKAGES: tuple[str, ...] = ("openvino",)
INSTALL = "pip install 'edgevit[openvino]'"
WHEELS: tuple[str, ...] = ("openvino", "openvino-telemetry")
NATIVE = False
READS_ONNX = True
MERGES = True
# Measured on a CPU with AMX, in bf16 and 2026.4: of what is lost three quarters are preparation, which is made anew
# wherever a node's shape is another than in the run before, and a quarter are nodes that fuse with fixed shapes only.
# Bodies of fixed shapes, one for each number, would save that, but each has to be compiled: loading would take as many
# times as long, and what fixed numbers take is 0.83 of the dense time at 0.68 of its MACs: little would be gained.
FOLLOWING_COSTS = (
    "OpenVINO prepares its kernels anew whenever the number changes and fuses fewer of them: an int8 DeiT-Ti takes 1.6 "
    "times the CPU time of the dense one at 0.83 of its MACs, and twice that while numbers come up for the first time"
)
PRECISIONS = ("f32", "bf16")
INT8 = ("i8", "u8")
# OpenVINO 2026.4's fusion of small MLPs (TokenizeMLPSeqSnippets) crashes on a few token rows by at most 256 columns,
# which pruning can make of the last FFN. The limits here leave room.
SMALL_ROWS, SMALL_COLUMNS = 64, 512
ENDS_FUSION = ("MVN", "Reshape", "Softmax", "Concat", "If", "Result")
_MAKING = threading.Lock()


class OpenVinoRunner:
    """A compiled model with one infer request; see `edgevit.backends.Runner`."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        names = {port.get_any_name() for port in compiled.inputs}
        self._shape = tuple(compiled.input("image").shape)
        self._gated = "effort" in names
        self._counts = any("tokens" in port.get_names() for port in compiled.outputs)

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        answer = self.answer(image, effort)
        return answer.logits, answer.gates

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        inputs = feed(image, effort, shape=self._shape, gated=self._gated)
        result = self._request.infer(inputs)
        tokens = np.array(result["tokens"]) if self._counts else NO_TOKENS
        return Answer(np.array(result["logits"]), np.array(result["gates"]), tokens)

    def close(self) -> None:
        self._request = None


def versions() -> dict[str, str]:
    return {"openvino": str(_runtime().__version__)}


def refused(target: Target) -> tuple[str, ...]:
    return (
        *refused_formats(target, FILES),
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
    model: onnx.ModelProto, folder: Path, *, formats: Sequence[str] = FORMATS, arch: str = "x86_64"
) -> tuple[str, ...]:
    """Write `model.xml` and `model.bin` (`formats` knows `ir` only) for a CPU of that architecture.

    Raises:
        OutputError: the disk refuses.
        RuntimeMissingError: OpenVINO is not installed.
    """
    read = _read(model, arch)
    _name_stably(read)
    try:
        with scratch(folder) as temporary:
            path = temporary / MODEL
            _save(read, path)
            for name in (DATA, MODEL):
                (temporary / name).replace(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write the model into {folder}: {error.strerror or error}") from error
    return MODEL, DATA


def _save(model: Any, path: Path) -> None:
    try:
        _runtime().save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # of a full disk too, in words that do not tell
        raise OutputError(
            f"OpenVINO cannot write the model into {path.parent} ({str(error).splitlines()[0]}); make room there, or "
            "choose another place with -o and TMPDIR"
        ) from error


def load(
    folder: Path, *, threads: int = 1, precision: str = "f32", file: str | None = None, weight_bits: int = 8
) -> OpenVinoRunner:
    """Load and compile the IR for this CPU. `weight_bits` 8 needs VNNI to be exact: OpenVINO has no exact mode without.

    Raises:
        BundleError: a file is missing or damaged, or the precision is unknown.
        RuntimeMissingError: OpenVINO is not installed.
    """
    runtime = _runtime()
    path = folder / (file or MODEL)
    for needed in (path, path.with_suffix(".bin")):
        if not needed.is_file():
            raise BundleError(f"{folder} has no {needed.name}")
    try:
        return OpenVinoRunner(_compiled(_core().read_model(path), threads, precision, **_exact(weight_bits)))
    except RuntimeError as error:
        raise BundleError(f"OpenVINO {runtime.__version__} cannot load {path}: {error}") from error


def counting(path: Path, *, threads: int = 1, precision: str = "f32", weight_bits: int = 8) -> Any:
    """An infer request, set up as `load` does, whose `profiling_info` tells the time of every node; an `If` is one."""
    more = {**_exact(weight_bits), "PERF_COUNT": True}
    return _compiled(_core().read_model(path), threads, precision, **more).create_infer_request()


def infer_request(
    model: onnx.ModelProto, *, arch: str, threads: int = 1, precision: str = "f32", weight_bits: int = 8
) -> Any:
    """Return an infer request of what `compile` makes of a model, set up as `load` does."""
    return _compiled(_read(model, arch), threads, precision, **_exact(weight_bits)).create_infer_request()


def trace_branches(
    model: Path, images: np.ndarray, *, branches: Sequence[str], gated: Sequence[str], **settings: Any
) -> Trace:
    from edgevit.backends.openvino import branch_times

    return branch_times.trace(counting(model, **settings), images, branches=branches, gated=gated)


def arena_peak(model: Path, image: np.ndarray, settings: Mapping[str, str], start: Start | None = None) -> None:
    return None


def linear_kernels(model: onnx.ModelProto, *, precision: str = "f32") -> tuple[tuple[str, bool], ...]:
    """Return kernels of Linears in the compiled graph: (node name, runs as int8).

    OpenVINO shows no If bodies in its runtime graph: pass the plain twin of a gated model.
    """
    found = []
    for operation in _compiled(_read(model), 1, precision).get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in operation.get_rt_info().items()}
        if info["layerType"].startswith("FullyConnected") or info["layerType"] == "MatMul":
            name = operation.get_friendly_name()
            # A classifier whose bias is zero becomes the output itself and takes its name.
            name = "head/y" if name.startswith("logits") else name
            found.append((name, info["runtimePrecision"] in INT8))
    return tuple(found)


def settings(folder: Path, *, precision: str = "f32", weight_bits: int = 8, file: str | None = None) -> dict[str, Any]:
    """Return the configuration that `load` compiles this model with on any device; for the bundle's own runner."""
    return _settings(_core().read_model(folder / (file or MODEL)), precision)


def _exact(weight_bits: int) -> dict[str, Any]:
    """Return what this CPU needs to compute int8 exactly.

    Without VNNI OpenVINO's int8 kernels add two products in 16 bits, which 8-bit weights can overflow (agreement with
    float falls to 75 % on a ViT-Ti). The quantized model is then computed as written, in float: slower, but right.
    """
    return {"LP_TRANSFORMS_MODE": "NO"} if weight_bits == 8 and lacks_vnni() else {}


def _compiled(model: Any, threads: int, precision: str, **more: Any) -> Any:
    configuration = {**_settings(model, precision), "INFERENCE_NUM_THREADS": threads, **more}
    return _core().compile_model(model, "CPU", configuration)


def _settings(model: Any, precision: str) -> dict[str, Any]:
    if precision not in PRECISIONS:
        raise BundleError(f"unknown precision {precision!r} for OpenVINO; allowed: {', '.join(PRECISIONS)}")
    configuration = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads stand still when another process holds their core.
        "ENABLE_CPU_PINNING": False,
    }
    if _has_small_mlp(model):
        # Costs 1 to 3 % of the time of a ViT-Ti.
        configuration["SNIPPETS_MODE"] = "DISABLE"
    return configuration


def _has_small_mlp(model: Any) -> bool:
    """Return whether a small MatMul feeds another one through elementwise operations only; branch bodies included."""
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "If" and any(
            _has_small_mlp(body) for body in (operation.get_then_body(), operation.get_else_body())
        ):
            return True
        if _is_small(operation) and _feeds_small(operation):
            return True
    return False


def _feeds_small(operation: Any) -> bool:
    while len(targets := operation.output(0).get_target_inputs()) == 1:
        operation = next(iter(targets)).get_node()
        if operation.get_type_name() in ENDS_FUSION:
            return False
        if operation.get_type_name() == "MatMul":
            return _is_small(operation)
    return False


def _is_small(operation: Any) -> bool:
    if operation.get_type_name() != "MatMul":
        return False
    # Rows that are counted at run time may be few.
    x, weight = (tuple(operation.get_input_partial_shape(i).get_min_shape()) for i in (0, 1))
    return len(x) == len(weight) == 2 and x[0] < SMALL_ROWS and max(weight) <= SMALL_COLUMNS


def _read(model: onnx.ModelProto, arch: str = "x86_64") -> Any:
    from edgevit.backends.openvino.rewrite import rewrite

    plain = rewrite(model, arch=arch)[0]
    # OpenVINO folds an input that has a default into a constant: without it, effort stays an input.
    inputs = {value.name for value in plain.graph.input}
    for index in reversed(range(len(plain.graph.initializer))):
        if plain.graph.initializer[index].name in inputs:
            del plain.graph.initializer[index]
    _flatten_conditions(plain)
    return _core().read_model(io.BytesIO(plain.SerializeToString()))


def _flatten_conditions(model: onnx.ModelProto) -> None:
    """Make the conditions of all Ifs `[1]`: ONNX takes any one element, OpenVINO no `[1, 1]`."""
    from onnx import TensorProto, helper

    nodes = model.graph.node
    gated = [index for index, node in enumerate(nodes) if node.op_type == "If"]
    for index in reversed(gated):
        condition = nodes[index].input[0]
        nodes[index].input[0] = flat = f"{condition}/flat"
        nodes.insert(index, helper.make_node("Reshape", [condition, "if/one"], [flat], name=flat))
    if gated:
        model.graph.initializer.append(helper.make_tensor("if/one", TensorProto.INT64, [1], [1]))


def _name_stably(model: Any, prefix: str = "") -> None:
    """Rename what OpenVINO numbered by a counter of the whole process, so that equal models give equal bytes."""
    for index, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z]+_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{prefix}{operation.get_type_name()}_{index}")
        if operation.get_type_name() == "If":
            _name_stably(operation.get_then_body(), f"{operation.get_friendly_name()}/then/")
            _name_stably(operation.get_else_body(), f"{operation.get_friendly_name()}/else/")


def _core() -> Any:
    """Return the process's one Core; threads that ask for it at the same time must not make two."""
    with _MAKING:
        return _made_core()


@cache
def _made_core() -> Any:
    """Make it.

    OpenVINO 2026.4 gives the thread a signal stack per Core and, when Cores end in another order than last in first
    out, leaves it one that is unmapped: the next signal with a handler, even Ctrl-C, ends the process without a word.
    """
    runtime = _runtime()
    # The binding looks for NumPy when it first shows a tensor's memory; where two threads come to that at the same time
    # each waits for the other for ever (2026.4).
    _ = runtime.Tensor(np.zeros(1, np.uint8)).data
    return runtime.Core()


def _runtime() -> Any:
    return imported(NAME, INSTALL)
