"""Merge tokens that are alike, as ONNX nodes: what `torch_form.tokens` says, on one image `[N, D]`.

A point costs time beside its products, so its nodes are few: rows are gathered, none is scattered; pairs are added up
by a small product with a 0/1 matrix. `TopK` and `ArgMax` take the lower index first among equals, as the ONNX standard
demands; a runtime whose `TopK` takes any gives nothing away (`verify.pairs`). Where the number of pairs follows the
image, later rows are counted when the model runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgevit.onnx_form.graph import Graph
from edgevit.onnx_form.layers import patch_rows
from edgevit.program.spec import MergeSpec, ProgramSpec
from edgevit.program.tokens import MERGE_EFFORT, fewest_before, halves, most_left, pair_counts

ALL = int(np.iinfo(np.int64).max)  # as the end of a Slice


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Names of what counts the patches behind the tokens of a stream.

    Attributes:
        tokens: of every token, 1 for those of the prefix, which come first; float `[N, 1]`.
        bias: their logarithms, float `[1, N]`: what attention adds to the scores of its keys.
        rows: N where it follows the image, int64 `[1]`; "" where it is fixed.
        owners: there, which skip row every token gets, float `[N, prefix + 1]`; "" if no branch has such rows.
    """

    tokens: str
    bias: str
    rows: str = ""
    owners: str = ""


def varies(sizes: Sizes | None) -> bool:
    """Return whether the number of rows is known only when the model runs."""
    return sizes is not None and sizes.rows != ""


def merge(
    graph: Graph,
    spec: ProgramSpec,
    point: MergeSpec,
    x: str,
    sizes: Sizes | None,
    rows: int,
    effort: str | None,
    shift: np.ndarray | None = None,
) -> tuple[str, Sizes]:
    """Emit one point: `rows` token rows in, the most there can be. Shapes: F, S tokens of both sets, C pairs.

    `effort` names what moves thresholds; None: nothing does. `shift` is the array of a point that has one.
    """
    name, prefix = f"merge.{point.after}", spec.stem.prefix
    end = ALL if varies(sizes) else rows
    a, b = (_every_other(graph, f"{name}/{part}", x, prefix + i, end) for i, part in enumerate(("first", "second")))
    best, into = _match(graph, spec, name, a, b, shift)
    first, second = halves(rows - prefix)
    if point.threshold is None and not varies(sizes):
        merged, left = _parted(graph, name, best, first, point.count)
    else:
        merged, left = _parted_by_image(graph, spec, point, best, rows, sizes, effort)
    goes_to = graph.op("Gather", [into, merged], f"{name}/goes_to", axis=0)
    # 1 where a token of the second set takes one of the first in: [S, C].
    if varies(sizes):
        depth = graph.op("Shape", [b], f"{name}/depth", start=0, end=1)
    else:
        depth = graph.const(f"{name}/depth", [second])
    values = graph.const("no_yes", np.array([0, 1], dtype=np.float32))
    taken = graph.op("OneHot", [goes_to, depth, values], f"{name}/taken", axis=0)
    moved = graph.op("Gather", [a, merged], f"{name}/merged_rows", axis=0)
    if sizes is None:
        firsts, own = (
            graph.const(f"{name}/{part}_ones", np.ones((n, 1), dtype=np.float32))
            for part, n in (("first", first), ("second", second))
        )
    else:
        firsts = _every_other(graph, f"{name}/first_sizes", sizes.tokens, prefix, end)
        own = _every_other(graph, f"{name}/second_sizes", sizes.tokens, prefix + 1, end)
    weights = graph.op("Gather", [firsts, merged], f"{name}/merged_sizes", axis=0)
    if sizes is not None:
        moved = graph.op("Mul", [moved, weights], f"{name}/merged_sums")
        b = graph.op("Mul", [b, own], f"{name}/second_sums")
    total = graph.op("Gemm", [taken, weights, own], f"{name}/sums")
    means = graph.op("Div", [graph.op("Gemm", [taken, moved, b], f"{name}/added"), total], f"{name}/means")
    rows_left, sizes_left = [means], [total]
    if left:
        rows_left.insert(0, graph.op("Gather", [a, left], f"{name}/left_rows", axis=0))
        sizes_left.insert(0, graph.op("Gather", [firsts, left], f"{name}/left_sizes", axis=0))
    if prefix:
        ends = [graph.const(f"{name}/prefix_{p}", v) for p, v in (("start", [0]), ("end", [prefix]), ("axis", [0]))]
        rows_left.insert(0, graph.op("Slice", [x, *ends], f"{name}/prefix"))
        sizes_left.insert(0, graph.const(f"{name}/prefix_ones", np.ones((prefix, 1), dtype=np.float32)))
    tokens = graph.op("Concat", sizes_left, f"{name}/sizes", axis=0)
    bias = graph.op(
        "Reshape", [graph.op("Log", [tokens], f"{name}/log"), graph.const("one_row", [1, -1])], f"{name}/bias"
    )
    y = graph.op("Concat", rows_left, f"{name}/y", axis=0)
    if point.threshold is None and not varies(sizes):
        return y, Sizes(tokens=tokens, bias=bias)
    # Of the sizes, not of the rows: a runtime may count at the end of a run only, and keep until then what is counted.
    count, owned = graph.op("Shape", [tokens], f"{name}/rows", start=0, end=1), ""
    if any(branch.skip for branch in spec.branches):
        most = owners(graph, spec, rows - point.fewest)
        start, axis = graph.const("from_start", [0]), graph.const("axis_0", [0])
        owned = graph.op("Slice", [most, start, count, axis], f"{name}/owners")
    return y, Sizes(tokens=tokens, bias=bias, rows=count, owners=owned)


def owners(graph: Graph, spec: ProgramSpec, rows: int) -> str:
    """Return which skip row each of `rows` tokens gets, `[rows, prefix + 1]`, 0 or 1."""
    owner = np.minimum(np.arange(rows), spec.stem.prefix)
    return graph.const(f"rows_{rows}", (owner[:, None] == np.arange(spec.stem.prefix + 1)).astype(np.float32))


def _match(graph: Graph, spec: ProgramSpec, name: str, a: str, b: str, shift: np.ndarray | None) -> tuple[str, str]:
    """Return the product with the most alike of the second set, for each of the first, and its place: both `[F]`."""
    ones = graph.const("ones", np.ones(spec.dim, dtype=np.float32))
    scale = [ones] if shift is None else [ones, graph.const(f"{name}/guard", -shift)]
    alike = [
        graph.op("LayerNormalization", [rows, *scale], f"{name}/alike_{part}", axis=-1, epsilon=spec.norm_eps)
        for part, rows in (("first", a), ("second", b))
    ]
    scores = graph.op("Gemm", alike, f"{name}/scores", transB=1)
    best = graph.op("ReduceMax", [scores, graph.const("axis_1", [1])], f"{name}/best", keepdims=0)
    return best, graph.op("ArgMax", [scores], f"{name}/into", axis=1, keepdims=0)


def _parted(graph: Graph, name: str, best: str, first: int, count: int) -> tuple[str, str]:
    """Return places in the first set of the `count` best, best first, and of the others in order ("": none)."""
    graph.ops("TopK", [best, graph.const(f"{name}/all", [first])], [f"{name}/ordered", f"{name}/order"], axis=0)
    if count == first:
        return f"{name}/order", ""
    merged, left = f"{name}/merged", f"{name}/left"
    sizes = graph.const(f"{name}/split", [count, first - count])
    graph.ops("Split", [f"{name}/order", sizes], [merged, f"{name}/left_by_score"], axis=0)
    # In order: two scores that are all but equal would else swap places, and with that who is of which set next.
    rest = graph.const(f"{name}/rest", [first - count])
    graph.ops("TopK", [f"{name}/left_by_score", rest], [left, f"{name}/left_order"], axis=0, largest=0)
    return merged, left


def _parted_by_image(
    graph: Graph, spec: ProgramSpec, point: MergeSpec, best: str, rows: int, sizes: Sizes | None, effort: str | None
) -> tuple[str, str]:
    """Return the same where the first set, or how many of it are merged, is counted while the model runs."""
    name = f"merge.{point.after}"
    everything = graph.op("Shape", [best], f"{name}/all")
    graph.ops("TopK", [best, everything], [f"{name}/ordered", f"{name}/order"], axis=0)
    count = graph.const(f"{name}/least", [point.fewest])
    if point.threshold is not None:
        numbers = _numbers(graph, point, rows, sizes)
        count = _count(graph, spec, point, f"{name}/ordered", count, numbers, effort)
    start, end, axis = (graph.const(n, v) for n, v in (("from_start", [0]), ("to_end", [ALL]), ("axis_0", [0])))
    merged = graph.op("Slice", [f"{name}/order", start, count, axis], f"{name}/merged")
    rest = graph.op("Slice", [f"{name}/order", count, end, axis], f"{name}/left_by_score")
    others = graph.op("Shape", [rest], f"{name}/rest")
    graph.ops("TopK", [rest, others], [f"{name}/left", f"{name}/left_order"], axis=0, largest=0)
    return merged, f"{name}/left"


def _numbers(graph: Graph, point: MergeSpec, rows: int, sizes: Sizes | None) -> tuple[str, str]:
    """Return the places of the last pair of every number of pairs but the least, and what each is more than the last.

    Where whole tiles of rows are to be left, and rows are counted when the model runs, by what they are beyond tiles.
    """
    name, by_rows = f"merge.{point.after}", point.whole and varies(sizes)
    found = [np.array(pair_counts(point, before)) for before in (range(point.step) if by_rows else [rows])]
    most = max(map(len, found)) - 1
    # A number that there is not adds nothing, whatever it is compared with.
    last = np.stack([np.pad(counts[1:] - 1, (0, most + 1 - len(counts))) for counts in found])
    steps = np.stack([np.pad(np.diff(counts), (0, most + 1 - len(counts))) for counts in found])
    if not by_rows:
        return graph.const(f"{name}/last", last[0]), graph.const(f"{name}/steps", steps[0])
    assert sizes is not None
    # The rest of a division: some runtimes fold `Mod` of a number that they know the most of into the rest of that.
    tiles = graph.op("Div", [sizes.rows, graph.const(f"{name}/tile", [point.step])], f"{name}/tiles")
    whole = graph.op("Mul", [tiles, graph.const(f"{name}/minus_tile", [-point.step])], f"{name}/minus_whole")
    past = graph.op("Add", [sizes.rows, whole], f"{name}/past_tiles")
    place = graph.op("Squeeze", [past, graph.const("axis_0", [0])], f"{name}/row")
    tables = (
        (part, graph.const(f"{name}/{part}_by_rows", table)) for part, table in (("last", last), ("steps", steps))
    )
    chosen = [graph.op("Gather", [table, place], f"{name}/{part}", axis=0) for part, table in tables]
    return chosen[0], chosen[1]


def _count(
    graph: Graph,
    spec: ProgramSpec,
    point: MergeSpec,
    ordered: str,
    least: str,
    numbers: tuple[str, str],
    effort: str | None,
) -> str:
    """Return how many pairs are merged, int64 `[1]`: of the numbers there are, the largest that all are above."""
    name, (last, steps) = f"merge.{point.after}", numbers
    assert point.threshold is not None
    limit = graph.const(f"{name}/threshold", np.array(spec.dim * point.threshold, dtype=np.float32))
    if effort is not None:
        scale = graph.const("merge.effort/scale", np.array(spec.dim * MERGE_EFFORT, dtype=np.float32))
        shift = graph.op("Mul", [effort, scale], f"{name}/shift")
        limit = graph.op("Add", [shift, limit], f"{name}/limit")
    if (short := point.count - halves(fewest_before(spec, point))[0]) > 0:
        never = graph.const(f"{name}/never", np.full(short, -np.inf, dtype=np.float32))
        ordered = graph.op("Concat", [ordered, never], f"{name}/ordered_and_never", axis=0)
    values = graph.op("Gather", [ordered, last], f"{name}/last_values", axis=0)
    above = graph.op("Greater", [values, limit], f"{name}/above")
    taken = graph.op("Cast", [above], f"{name}/taken_steps", to=TensorProto.INT64)
    more = graph.op("Mul", [taken, steps], f"{name}/more")
    more = graph.op("ReduceSum", [more, graph.const("axis_0", [0])], f"{name}/more_pairs", keepdims=1)
    return graph.op("Add", [more, least], f"{name}/pairs") if point.least else more


def _every_other(graph: Graph, name: str, x: str, start: int, end: int) -> str:
    ends = (("start", [start]), ("end", [end]), ("axis", [0]), ("step", [2]))
    return graph.op("Slice", [x, *(graph.const(f"{name}_{part}", value) for part, value in ends)], name)


def left(graph: Graph, spec: ProgramSpec, points: list[Sizes]) -> str:
    """Return the output `tokens`: patch tokens left after each point, int32 `[points]`."""
    counts = []
    for point, most, sizes in zip(spec.merges, most_left(spec), points, strict=True):
        counts.append(sizes.rows or graph.const(f"merge.{point.after}/rows", [spec.stem.prefix + most]))
    rows = graph.op("Concat", counts, "tokens/rows", axis=0)
    rows = graph.op("Sub", [rows, graph.const("tokens/prefix", [spec.stem.prefix])], "tokens/patches")
    return graph.op("Cast", [rows], "tokens", to=TensorProto.INT32)


def weigh_keys(graph: Graph, branch: str, scores: str, sizes: Sizes | None) -> str:
    """Add log(size) to the scores `[1, H, R, N]` of every key."""
    return scores if sizes is None else graph.op("Add", [scores, sizes.bias], f"{branch}/weighed")


def mean_rows(graph: Graph, spec: ProgramSpec, patches: str, name: str, x: str, read: int, sizes: Sizes | None) -> str:
    """Return the mean over patches `[1, D]` of the stream `[read, D]`, each token counting as often as its patches."""
    end = ALL if varies(sizes) else read
    x = patch_rows(graph, spec, patches, x, end)
    if sizes is not None:
        weights = patch_rows(graph, spec, f"{patches}_sizes", sizes.tokens, end)
        return graph.op("Gemm", [weights, x], name, transA=1, alpha=1.0 / spec.patches)
    return graph.op("ReduceMean", [x, graph.const("axis_0", [0])], name, keepdims=1)
