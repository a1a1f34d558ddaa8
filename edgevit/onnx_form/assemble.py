"""Stitch the parts of a Program into one ONNX model, gates as sequential `If` nodes.

Inputs: `image` uint8 `[1, height, width, 3]`; with gates also `effort`, a float32 scalar added to every gate logit
(0 = as calibrated; +-inf opens or closes all); so it is where the number of merged tokens follows the image, whose
thresholds it moves too. Outputs: `logits` float32 `[1, classes]`, `gates` uint8 `[branches]`, 1 = the branch ran, and
then also `tokens` int32 `[points]`, the patch tokens left after each point. In between the residual stream is 2-D,
`[tokens, dim]`; a Linear is a Gemm on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto

from edgevit import __version__
from edgevit.onnx_form import attention, ffn, gate, head, patch_stem, t2t_stem, tokens
from edgevit.onnx_form.graph import Graph, model, tensor
from edgevit.onnx_form.layers import first_rows, norm
from edgevit.program.macs import rows_in, rows_out
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec, ProgramSpec, StemKind, shift_name
from edgevit.program.tokens import merge_at
from edgevit.schema.quant_plan import QuantPlan

Gating = Literal["if", "open", "both"]

STEMS: Mapping[StemKind, Callable[[Graph, Program, str, QuantPlan | None], str]] = {
    "patch": patch_stem.embed,
    "t2t_performer": t2t_stem.embed,
    "t2t_transformer": t2t_stem.embed,
}


def assemble(
    program: Program,
    plan: QuantPlan | None = None,
    *,
    gating: Gating = "if",
    taps: bool = False,
    streams: bool = False,
) -> onnx.ModelProto:
    """Lower a Program to one ONNX model.

    Args:
        program: the model.
        plan: which Linears are int8 and how; None keeps all of them float.
        gating: `if` skips closed branches; `open` ignores the gates (the plain twin, no `effort` input: tokens merge
            as calibrated); `both` computes both sides of every gate and selects, so that taps see what every branch
            would do.
        taps: add the input of every Linear as an output named `tap:<linear>` (not with `if`).
        streams: add the stream after every branch as an output named `stream:<branch>`.
    """
    return model(*_lowered(program, plan, gating, taps, streams), __version__)[0]


def detached(
    program: Program, plan: QuantPlan | None = None, *, gating: Gating = "if", taps: bool = False
) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]]:
    """Return the same model, only naming its large initialisers, and these: the Program's own arrays where it can be.

    To run a model here (`backends.reference`) that is not to be written: it may be larger than a message can hold, and
    takes no memory beside the Program's.
    """
    return model(*_lowered(program, plan, gating, taps, False), __version__, detached=True)


Values = Sequence[onnx.ValueInfoProto]


def _lowered(
    program: Program, plan: QuantPlan | None, gating: Gating, taps: bool, streams: bool
) -> tuple[Graph, Values, Values]:
    """Return the graph with its inputs and outputs."""
    spec = program.spec
    graph = Graph(spec.name)
    steered = spec.steered and gating != "open"
    x = _stem(graph, program, "image", plan)
    states, opened = [], []
    sizes: tokens.Sizes | None = None
    points: list[tokens.Sizes] = []
    for branch, rows, read in zip(spec.branches, rows_out(spec), rows_in(spec), strict=True):
        if gating == "open" or branch.gate is None:
            x = _branch(graph, program, branch, x, plan, rows, read, sizes)
            opened.append(_constant_state(graph, branch))
        else:
            is_open = gate.gate(graph, program, branch, x, "effort", read, sizes)
            emit = _conditional if gating == "if" else _select
            x = emit(graph, program, branch, x, plan, rows, read, sizes, is_open)
            opened.append(is_open)
        sizes = sizes if rows == read else None  # nothing mixes tokens any more
        states.append((branch.name, x, _dim(rows, sizes)))
        if (point := merge_at(spec, branch.name)) is not None:
            shift = program.weights[shift_name(point)] if point.shift else None
            x, sizes = tokens.merge(graph, spec, point, x, sizes, rows, "effort" if steered else None, shift)
            points.append(sizes)
    head.head(graph, program, x, plan, rows_out(spec)[-1] if states else spec.tokens, sizes)
    # One cast of all decisions: every node on the main path is paid for on every run.
    decisions = graph.op("Concat", opened, "gates/open", axis=0)
    decisions = graph.op("Reshape", [decisions, graph.const("gates/flat", [len(opened)])], "gates/flattened")
    graph.op("Cast", [decisions], "gates", to=TensorProto.UINT8)
    outputs = [tensor("logits", [1, spec.head.classes]), tensor("gates", [len(opened)], TensorProto.UINT8)]
    if spec.adaptive:
        tokens.left(graph, spec, points)
        outputs.append(tensor("tokens", [len(points)], TensorProto.INT32))
    if streams:
        outputs += [_expose(graph, f"stream:{name}", x, (rows, spec.dim)) for name, x, rows in states]
    if taps:
        outputs += _taps(graph, program, plan)
    inputs = [tensor("image", [1, spec.image.height, spec.image.width, 3], TensorProto.UINT8)]
    if steered:
        # An input with an initialiser of its name is optional where the runtime knows defaults.
        graph.const("effort", np.array(0.0, dtype=np.float32))
        inputs.append(tensor("effort", []))
    return graph, inputs, outputs


def _dim(rows: int, sizes: tokens.Sizes | None) -> int | str:
    """Return how many rows a stream has, or the name of their number where it follows the image."""
    return sizes.rows if sizes is not None and sizes.rows else rows


def _stem(graph: Graph, program: Program, image: str, plan: QuantPlan | None) -> str:
    """Map uint8 `[1, height, width, 3]` to the stream `[N, D]`."""
    x = STEMS[program.spec.stem.kind](graph, program, image, plan)
    if program.spec.stem.prefix:
        prefix = graph.const("stem.prefix", program.weights["stem.prefix"])
        x = graph.op("Concat", [prefix, x], "stem/tokens", axis=0)
    return norm(graph, program, "stem.norm", x) if program.spec.stem.norm else x


def _branch(
    graph: Graph,
    program: Program,
    spec: BranchSpec,
    x: str,
    plan: QuantPlan | None,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None,
) -> str:
    """Return `x + f(norm(x))` of one branch: `read` rows in, the first `rows` of them out."""
    name = spec.name
    if spec.removed:
        return gate.skipped(graph, program, spec, x, rows, read, sizes)
    shortcut = first_rows(graph, f"{name}/shortcut", x, rows, read)
    if spec.kind == "mhsa":
        y = attention.mhsa(graph, program, spec, norm(graph, program, f"{name}.norm", x), plan, rows, read, sizes)
    else:
        y = ffn.ffn(graph, program, spec, norm(graph, program, f"{name}.norm", shortcut), plan)
    return graph.op("Add", [shortcut, y], f"{name}/out")


def _conditional(
    graph: Graph,
    program: Program,
    branch: BranchSpec,
    x: str,
    plan: QuantPlan | None,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None,
    is_open: str,
) -> str:
    then, other = graph.body(f"{branch.name}_open"), graph.body(f"{branch.name}_skipped")
    shape = (_dim(rows, sizes if rows == read else None), program.spec.dim)
    ran = tensor(_branch(then, program, branch, x, plan, rows, read, sizes), shape)
    stood = tensor(gate.skipped(other, program, branch, x, rows, read, sizes), shape)
    return graph.op(
        "If",
        [is_open],
        f"{branch.name}/y",
        then_branch=then.proto([], [ran]),
        else_branch=other.proto([], [stood]),
    )


def _select(
    graph: Graph,
    program: Program,
    branch: BranchSpec,
    x: str,
    plan: QuantPlan | None,
    rows: int,
    read: int,
    sizes: tokens.Sizes | None,
    is_open: str,
) -> str:
    ran = _branch(graph, program, branch, x, plan, rows, read, sizes)
    other = graph.body(f"{branch.name}_skipped")
    stood = gate.skipped(other, program, branch, x, rows, read, sizes)
    # The skipped side shares the scope here: its names differ from the open side's by construction.
    graph.nodes.extend(other.nodes)
    graph.initialisers.update(other.initialisers)
    return graph.op("Where", [is_open, ran, stood], f"{branch.name}/y")


def _constant_state(graph: Graph, branch: BranchSpec) -> str:
    return graph.const(f"{branch.name}.state", np.array([[not branch.removed]]))


def _expose(graph: Graph, name: str, source: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    graph.op("Identity", [source], name)
    return tensor(name, shape)


def _taps(graph: Graph, program: Program, plan: QuantPlan | None) -> list[onnx.ValueInfoProto]:
    """Return the float inputs of all Linears but the patch stem's, whose input is the image."""
    if plan is not None:
        raise ValueError("taps are of the float graph: pass no plan")
    sources = {node.output[0]: node.input[0] for node in graph.nodes if node.op_type == "Gemm"}
    made = {name for node in graph.nodes for name in node.output}
    outputs, named = [], dict[str, str]()
    for name, shape in tap_shapes(program.spec).items():
        source, tap = sources.get(f"{name}/y") or sources[f"{name.removesuffix('qkv')}kv/y"], f"tap:{name}"
        size = (f"rows:{name}" if program.spec.adaptive else shape[0], shape[1])
        if source in made and source not in named:
            named[source] = tap
            outputs.append(tensor(tap, size))
        else:
            outputs.append(_expose(graph, tap, named.get(source, source), size))
    for node in graph.nodes:  # a value that is an output itself is not copied to become one
        for names in (node.input, node.output):
            names[:] = [named.get(name, name) for name in names]
    return outputs


def tap_shapes(spec: ProgramSpec) -> dict[str, tuple[int, int]]:
    """Shape `[rows, in]` of the float input of every Linear, at most; the patch stem is left out: that is the image."""
    shapes = {} if spec.stem.kind == "patch" else {"stem": (spec.patches, 9 * spec.stem.token_dim)}
    for branch, rows, read in zip(spec.branches, rows_out(spec), rows_in(spec), strict=True):
        if branch.removed:
            continue
        if branch.kind == "mhsa":
            shapes |= {f"{branch.name}.qkv": (read, spec.dim), f"{branch.name}.proj": (rows, branch.width)}
        else:
            shapes |= {f"{branch.name}.fc1": (rows, spec.dim), f"{branch.name}.fc2": (rows, branch.units)}
    if spec.head.linear:
        shapes["head"] = (1, spec.dim * (spec.head.prefix if spec.head.pool == "prefix" else 1))
    return shapes
