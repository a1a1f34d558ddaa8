"""Merge tokens that are alike, as ONNX nodes: what `torch_form.tokens` says, on one image `[N, D]`.

A point costs time beside its products, so its nodes are few: rows are gathered, none is scattered; pairs are added up
by a small product with a 0/1 matrix. `TopK` puts the lower index first among equals, as the ONNX standard demands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgevit.errors import ProgramError
from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.layers import patch_rows
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.program.tokens import halves


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Names of what counts the patches behind the tokens of a stream.

    Attributes:
        patches: of every patch token, float `[N - prefix, 1]`.
        bias: log(size) of every token, prefix first, float `[1, N]`: what attention adds to the scores of its keys.
    """

    patches: str
    bias: str


def merge(
    graph: Graph, spec: ProgramSpec, point: MergeSpec, x: str, sizes: Sizes | None, rows: int
) -> tuple[str, Sizes]:
    """Emit one point: `rows` token rows in, `rows - count` out. Shapes: F, S tokens of both sets, C = count."""
    if point.threshold is not None:
        raise ProgramError(f"{spec.name} merges tokens by a threshold, which no runtime of ONNX graphs knows yet")
    name, prefix, count = f"merge.{point.after}", spec.stem.prefix, point.count
    first, second = halves(rows - prefix)
    a, b = (_every_other(graph, f"{name}/{part}", x, prefix + i, rows) for i, part in enumerate(("first", "second")))
    merged, left, into = _match(graph, spec, point, x, rows)
    # 1 where a token of the second set takes one of the first in: [S, C].
    places = graph.const(f"{name}/places", np.arange(second, dtype=np.int64)[:, None])
    taken = graph.op("Cast", [graph.op("Equal", [places, into], f"{name}/same")], f"{name}/taken", to=TensorProto.FLOAT)
    moved = graph.op("Gather", [a, merged], f"{name}/merged_rows", axis=0)
    axis_1 = graph.const(f"{name}/axis_1", [1])
    if sizes is None:
        own = graph.const(f"{name}/ones", np.ones((second, 1), dtype=np.float32))
        all_first = graph.const(f"{name}/left_ones", np.ones((first - count, 1), dtype=np.float32))
    else:
        all_first = _every_other(graph, f"{name}/first_sizes", sizes.patches, 0, rows - prefix)
        own = _every_other(graph, f"{name}/second_sizes", sizes.patches, 1, rows - prefix)
        weights = graph.op("Gather", [all_first, merged], f"{name}/merged_sizes", axis=0)
        weights = graph.op("Reshape", [weights, graph.const(f"{name}/row", [1, count])], f"{name}/merged_row")
        taken = graph.op("Mul", [taken, weights], f"{name}/weights")
        b = graph.op("Mul", [b, own], f"{name}/second_sums")
    total = graph.op("ReduceSum", [taken, axis_1], f"{name}/taken_sizes", keepdims=1)
    total = graph.op("Add", [total, own], f"{name}/sums")
    means = graph.op("Div", [graph.op("Gemm", [taken, moved, b], f"{name}/added"), total], f"{name}/means")
    rows_left, sizes_left = [means], [total]
    if left:
        rows_left.insert(0, graph.op("Gather", [a, left], f"{name}/left_rows", axis=0))
        kept = graph.op("Gather", [all_first, left], f"{name}/left_sizes", axis=0) if sizes else all_first
        sizes_left.insert(0, kept)
    if prefix:
        ends = [graph.const(f"{name}/prefix_{p}", v) for p, v in (("start", [0]), ("end", [prefix]), ("axis", [0]))]
        rows_left.insert(0, graph.op("Slice", [x, *ends], f"{name}/prefix"))
    patches = graph.op("Concat", sizes_left, f"{name}/sizes", axis=0)
    bias = graph.op("Log", [patches], f"{name}/log")
    if prefix:
        zeros = graph.const(f"{name}/zeros", np.zeros((prefix, 1), dtype=np.float32))
        bias = graph.op("Concat", [zeros, bias], f"{name}/log_all", axis=0)
    bias = graph.op("Reshape", [bias, graph.const(f"{name}/keys", [1, rows - count])], f"{name}/bias")
    return graph.op("Concat", rows_left, f"{name}/y", axis=0), Sizes(patches=patches, bias=bias)


def _match(graph: Graph, spec: ProgramSpec, point: MergeSpec, x: str, rows: int) -> tuple[str, str, str]:
    """Return places in the first set of the merged `[C]` and the left `[F - C]` ("": none), and the partners."""
    name, count, prefix = f"merge.{point.after}", point.count, spec.stem.prefix
    first, _ = halves(rows - prefix)
    ones = graph.const("ones", np.ones(spec.dim, dtype=np.float32))
    alike = graph.op("LayerNormalization", [x, ones], f"{name}/alike", axis=-1, epsilon=spec.norm_eps)
    a = _every_other(graph, f"{name}/alike_first", alike, prefix, rows)
    b = _every_other(graph, f"{name}/alike_second", alike, prefix + 1, rows)
    scores = graph.op("Gemm", [a, b], f"{name}/scores", transB=1)
    one = graph.const(f"{name}/one", [1])
    graph.ops("TopK", [scores, one], [f"{name}/best", f"{name}/into"], axis=1)
    flat = graph.const(f"{name}/flat", [first])
    best, into = (graph.op("Reshape", [f"{name}/{v}", flat], f"{name}/{v}_flat") for v in ("best", "into"))
    graph.ops("TopK", [best, flat], [f"{name}/ordered", f"{name}/order"], axis=0)
    merged, left = f"{name}/order", ""
    if count < first:
        merged, left = f"{name}/merged", f"{name}/left"
        sizes = graph.const(f"{name}/split", [count, first - count])
        graph.ops("Split", [f"{name}/order", sizes], [merged, f"{name}/left_by_score"], axis=0)
        # In order: two scores that are all but equal would else swap places, and with that who is of which set next.
        rest = graph.const(f"{name}/rest", [first - count])
        graph.ops("TopK", [f"{name}/left_by_score", rest], [left, f"{name}/left_order"], axis=0, largest=0)
    return merged, left, graph.op("Gather", [into, merged], f"{name}/goes_to", axis=0)


def _every_other(graph: Graph, name: str, x: str, start: int, rows: int) -> str:
    ends = (("start", [start]), ("end", [rows]), ("axis", [0]), ("step", [2]))
    return graph.op("Slice", [x, *(graph.const(f"{name}_{part}", value) for part, value in ends)], name)


def weigh_keys(graph: Graph, branch: str, scores: str, sizes: Sizes | None) -> str:
    """Add log(size) to the scores `[1, H, R, N]` of every key."""
    return scores if sizes is None else graph.op("Add", [scores, sizes.bias], f"{branch}/weighed")


def mean_rows(graph: Graph, spec: ProgramSpec, patches: str, name: str, x: str, read: int, sizes: Sizes | None) -> str:
    """Return the mean over patches `[1, D]` of the stream `[read, D]`, each token counting as often as its patches."""
    x = patch_rows(graph, spec, patches, x, read)
    if sizes is not None:
        return graph.op("Gemm", [sizes.patches, x], name, transA=1, alpha=1.0 / spec.patches)
    return graph.op("ReduceMean", [x, graph.const("axis_0", [0])], name, keepdims=1)
