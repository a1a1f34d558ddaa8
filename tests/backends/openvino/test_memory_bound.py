from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.backends.openvino import compile
from edgevit.backends.openvino.memory_bound import bound
from edgevit.errors import BoundError
from edgevit.onnx_form.assemble import assemble
from tests.backends.onnxruntime.test_memory_bound import quantized
from tests.tiny import tiny_program

openvino = pytest.importorskip("openvino", reason="OpenVINO is an extra")


def test_a_graph_worked_out_by_hand(tmp_path: Path) -> None:
    ops = openvino.opset13
    image = ops.parameter([4, 8], np.float32, name="image")
    doubled = ops.multiply(image, ops.constant(np.full((4, 8), 2, np.float32)), name="doubled")  # 128 bytes
    wide = ops.concat([doubled, doubled, doubled], 0, name="wide")  # 384, doubled still alive for `sum`
    narrow = ops.reduce_sum(wide, ops.constant([0], np.int64), keep_dims=True, name="narrow")  # 32
    result = ops.add(doubled, narrow, name="sum")  # 128
    openvino.save_model(openvino.Model([result], [image]), tmp_path / "model.xml", compress_to_fp16=False)
    made = bound(tmp_path / "model.xml")
    live = dict(made.timeline)
    constants = 4 * 8 * 4 + 8
    assert made.bound.weights_bytes == constants
    assert [live[n] - constants for n in ("doubled", "wide", "narrow", "sum")] == [128, 512, 544, 288]
    assert made.bound.activations_bytes == made.main_frame_bytes == 544
    assert made.bound.io_bytes == 128 + 128
    assert made.bound.bound_bytes == constants + 544 + 256
    assert made.bound.arena_bytes == 0
    assert "not the process" in made.bound.covers


@pytest.mark.parametrize("int8", [False, True])
def test_gated_model_counts_the_worse_body_and_the_constants_of_all(int8: bool, tmp_path: Path) -> None:
    program = tiny_program(gated=True)
    plan = quantized(program.spec) if int8 else None
    compile(assemble(program, plan), tmp_path)
    made = bound(tmp_path / "model.xml")
    assert [name for name, _, _ in made.branches] == [b.name for b in program.spec.branches]
    assert all(opened > skipped > 0 for _, opened, skipped in made.branches)
    worst = max(opened for _, opened, _ in made.branches)
    assert max(worst, made.main_frame_bytes) <= made.bound.activations_bytes <= worst + made.main_frame_bytes
    stored = sum(w.nbytes for w in program.weights.values())
    assert (0.2 if int8 else 0.95) * stored < made.bound.weights_bytes < (0.6 if int8 else 1.1) * stored
    plain = tmp_path / "plain"
    plain.mkdir()
    compile(assemble(program, plan, gating="open"), plain)
    assert not bound(plain / "model.xml").branches


def test_an_unreadable_ir_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<nothing/>")
    with pytest.raises(BoundError, match="cannot read"):
        bound(tmp_path / "model.xml")


def test_a_free_dimension_is_an_error(tmp_path: Path) -> None:
    ops = openvino.opset13
    image = ops.parameter([-1, 8], np.float32, name="image")
    openvino.save_model(openvino.Model([ops.relu(image)], [image]), tmp_path / "model.xml")
    with pytest.raises(BoundError, match="not fixed"):
        bound(tmp_path / "model.xml")


@pytest.mark.parametrize("gated", [False, True])
def test_of_tokens_that_follow_the_image_the_worst_number_is_bounded(gated: bool, tmp_path: Path) -> None:
    """No plan with fixed numbers between the least and the most needs more than the one that follows the image."""
    options: dict[str, Any] = {"depth": 4, "image": (64, 64), "gated": gated, "skip": gated}
    made = {}
    for plan in ("1:0-24@0.8,2:2-16@0.8", "1:24,2:16", "1:8,2:8", "1:16,2:2"):
        folder = tmp_path / plan.replace(":", "_")
        folder.mkdir()
        compile(assemble(tiny_program(tokens=plan, **options)), folder)
        made[plan] = bound(folder / "model.xml").bound.activations_bytes
    adaptive, *fixed = made.values()
    assert adaptive >= max(fixed)
