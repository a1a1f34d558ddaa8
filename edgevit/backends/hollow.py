"""The same graph with nothing in its gated branches: what a run costs at least, however much it skips."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import helper

from edgevit.errors import SkipError


def hollow(model: onnx.ModelProto, branches: Collection[str]) -> onnx.ModelProto:
    """Return a lowered model whose open branches do what its closed ones do; gates decide as before.

    Args:
        model: is not changed; names, and weights of what always runs, are the same in the other.
        branches: names of the gated branches.

    Raises:
        SkipError: a branch has no `If`.
    """
    ifs = {f"{name}/y" for name in branches}
    if lacking := ifs - {node.name for node in model.graph.node if node.op_type == "If"}:
        raise SkipError(f"{', '.join(sorted(lacking))}: no If, so that the branch runs whatever its gate says")
    graph = onnx.GraphProto(name=model.graph.name)
    for field in ("input", "output", "initializer", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    graph.node.extend(_emptied(node) if node.name in ifs else node for node in model.graph.node)
    return helper.make_model(
        graph, ir_version=model.ir_version, opset_imports=model.opset_import, producer_name=model.producer_name
    )


def _emptied(node: onnx.NodeProto) -> onnx.NodeProto:
    other = next(each.g for each in node.attribute if each.name == "else_branch")
    return helper.make_node("If", node.input, node.output, node.name, then_branch=other, else_branch=other)
