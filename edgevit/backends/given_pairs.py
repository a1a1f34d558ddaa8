"""Let a lowered model be told which tokens it merges, as another run has merged them, instead of choosing itself.

Every point gets inputs that stand for its own choice where `pairs/given` is true: partners, the first set with those
that are merged first, and where their number follows the image how many these are. They are optional: a run without
them computes what the model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from edgevit.verify.pairs import Pairs

GIVEN = "pairs/given"


def point_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of the points where a lowered model merges tokens, in order."""
    ends = "/scores"
    return [
        node.name.removesuffix(ends)
        for node in model.graph.node
        if node.name.startswith("merge.") and node.name.endswith(ends)
    ]


def pair_outputs(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return where every point's choice is, among the values of a lowered model: partners, and those that are merged.

    The latter are places in the first set, best first.
    """
    made = {output for node in model.graph.node for output in node.output}
    merged = {name: f"{name}/merged" if f"{name}/merged" in made else f"{name}/order" for name in point_names(model)}
    return [(f"{name}/into", place) for name, place in merged.items()]


def told_pairs(names: Sequence[tuple[str, str]], values: Mapping[str, np.ndarray]) -> tuple[Pairs, ...]:
    """Return the pairs of a run from its outputs, those that `pair_outputs` names."""
    from edgevit.verify.pairs import Pairs

    return tuple(
        Pairs(into=np.array(values[into], np.int64), merged=np.sort(np.array(values[merged], np.int64)))
        for into, merged in names
    )


def telling_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a lowered model whose outputs `pair_outputs` are, behind its own."""
    told = type(model)()
    told.CopyFrom(model)
    for output in dict.fromkeys(name for names in pair_outputs(model) for name in names):
        told.graph.output.add(name=output)
    return told


def accept_pairs(model: onnx.ModelProto) -> None:
    """Give a lowered model the inputs; it is changed in place."""
    from onnx import TensorProto, helper

    graph, nodes = model.graph, []
    if not (points := point_names(model)):
        return
    chosen = {f"{name}/{part}" for name in points for part in ("into", "order")}
    counted = {f"{name}/{part}" for name in points for part in ("merged", "left_by_score")}
    used: dict[str, str] = {}
    _optional(graph, GIVEN, helper.make_tensor(GIVEN, TensorProto.BOOL, [], [False]), [])
    for node in graph.node:
        # The number of pairs is what the two Slices of an order that follows the image have in common.
        counts = {node.input[2 if node.output[0].endswith("/merged") else 1]} if _slices(node, counted) else set[str]()
        for index, value in enumerate(node.input):
            if value not in chosen | counts or node.op_type == "TopK":
                continue
            if value not in used:
                used[value], given = f"{value}/used", f"{value}/given"
                _optional(graph, given, helper.make_tensor(given, TensorProto.INT64, [1], [0]), [given])
                nodes.append(helper.make_node("Where", [GIVEN, given, value], [used[value]], name=used[value]))
            node.input[index] = used[value]
        nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _slices(node: onnx.NodeProto, names: set[str]) -> bool:
    return node.op_type == "Slice" and node.output[0] in names


def _optional(graph: onnx.GraphProto, name: str, value: onnx.TensorProto, shape: Sequence[str]) -> None:
    from onnx import helper

    graph.input.append(helper.make_tensor_value_info(name, value.data_type, shape))
    graph.initializer.append(value)


def given(names: Sequence[str], pairs: Sequence[Pairs], accepted: set[str]) -> Mapping[str, np.ndarray]:
    """Return the inputs with which the points `names` merge these pairs; `accepted` are those that the model has."""
    found = {GIVEN: np.array(True)}
    for name, each in zip(names, pairs, strict=True):
        found[f"{name}/into/given"] = each.into.astype(np.int64)
        found[f"{name}/order/given"] = np.concatenate([each.merged, each.left]).astype(np.int64)
        count = np.array([len(each.merged)], dtype=np.int64)
        found |= {f"{name}/{part}/given": count for part in ("pairs", "more_pairs", "least")}
    return {name: value for name, value in found.items() if name in accepted}
