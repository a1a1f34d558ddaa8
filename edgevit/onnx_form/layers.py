"""What every part of the graph is made of beside Linears: LayerNorm, and some of a stream's rows."""

from __future__ import annotations

from edgevit.onnx_form.graph import Graph
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec


def norm(graph: Graph, program: Program, name: str, x: str, eps: float | None = None) -> str:
    """Return LayerNormalization over the last axis with the Program's `name.weight` and `name.bias`."""
    inputs = [x] + [graph.const(f"{name}.{part}", program.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
    epsilon = program.spec.norm_eps if eps is None else eps
    return graph.op("LayerNormalization", inputs, f"{name}/y", axis=-1, epsilon=epsilon)


def first_rows(graph: Graph, name: str, x: str, rows: int, rows_read: int) -> str:
    """Return the first `rows` of `rows_read` rows; the tensor itself when that is all of them."""
    if rows == rows_read:
        return x
    ends = [graph.const(f"{name}_{part}", value) for part, value in (("start", [0]), ("end", [rows]), ("axis", [0]))]
    return graph.op("Slice", [x, *ends], name)


def patch_rows(graph: Graph, spec: ProgramSpec, name: str, x: str, read: int) -> str:
    """Return the rows of patches of `read` rows; the tensor itself when there are no prefix tokens."""
    if not spec.stem.prefix:
        return x
    ends = [graph.const(f"{name}_{p}", v) for p, v in (("start", [spec.stem.prefix]), ("end", [read]), ("axis", [0]))]
    return graph.op("Slice", [x, *ends], name)
