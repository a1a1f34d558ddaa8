from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.backends import onnx_backend, onnx_backends
from edgevit.backends.hollow import hollow
from edgevit.errors import SkipError
from edgevit.onnx_form.assemble import assemble
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

PROGRAM = tiny_program(gated=True, skip=True, depth=3)
GATED = tuple(branch.name for branch in PROGRAM.spec.branches)


@pytest.mark.parametrize("name", onnx_backends())
@pytest.mark.parametrize("quantized", [False, True])
def test_open_branches_do_what_closed_ones_do(name: str, quantized: bool, tmp_path: Path) -> None:
    """Skipped, both graphs are the same; open, the hollow one is what it is skipped, with every gate open."""
    model = assemble(PROGRAM, tiny_plan(PROGRAM) if quantized else None)
    before = model.SerializeToString()
    runners = []
    for folder, graph in (("whole", model), ("hollow", hollow(model, GATED))):
        (tmp_path / folder).mkdir()
        onnx_backend(name).compile(graph, tmp_path / folder)
        runners.append(onnx_backend(name).load(tmp_path / folder))
    whole, empty = runners
    image = tiny_images(PROGRAM.spec, 1)
    skipped, closed = whole.run(image, -1e9)
    np.testing.assert_array_equal(empty.run(image, -1e9)[0], skipped)
    logits, opened = empty.run(image, 1e9)
    np.testing.assert_array_equal(logits, skipped)
    assert opened.all() and not closed.any() and not np.array_equal(whole.run(image, 1e9)[0], skipped)
    assert model.SerializeToString() == before


def test_a_branch_without_an_if_is_refused() -> None:
    with pytest.raises(SkipError, match="b00_ffn/y, b00_mhsa/y.*: no If, so that the branch runs whatever"):
        hollow(assemble(PROGRAM, gating="both"), GATED)


def test_only_what_is_named_is_emptied() -> None:
    ifs = [node for node in hollow(assemble(PROGRAM), GATED[:1]).graph.node if node.op_type == "If"]
    sizes = [{body.name: len(body.g.node) for body in node.attribute} for node in ifs]
    assert [found["then_branch"] > found["else_branch"] for found in sizes] == [False] + [True] * (len(GATED) - 1)
