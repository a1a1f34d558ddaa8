"""Merges in the lowered graph: the same pairs as in torch on every runtime, also among equals; and fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.backends import onnx_backend
from edgevit.backends.onnxruntime.memory_bound import bound
from edgevit.onnx_form.assemble import assemble
from edgevit.onnx_form.check import check_model
from edgevit.program.program import Program
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def answers(program: Program, images: np.ndarray, runtime: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits of torch and of the runtime, `[n, classes]`."""
    model = Vit(program)
    with torch.no_grad():
        expected = model(normalise(program.spec, images), model.hard_gates() if program.spec.gated else None).numpy()
    graph = assemble(program)
    check_model(graph)
    onnx_backend(runtime).compile(graph, folder)
    runner = onnx_backend(runtime).load(folder)
    return expected, np.concatenate([runner.run(image[None])[0] for image in images])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "options",
    [{"tokens": "1:4,2:3"}, {"gated": True, "tokens": "1:8,2:2"}, {"prefix": 0, "tokens": "1:5,2:4,3:2"}],
)
def test_a_runtime_merges_what_torch_merges(options: dict[str, Any], runtime: str, tmp_path: Path) -> None:
    program = tiny_program(depth=4, **options)
    expected, got = answers(program, tiny_images(program.spec, 3), runtime, tmp_path)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_equal_tokens_are_merged_in_the_same_order(runtime: str, tmp_path: Path) -> None:
    """Patches in groups of equals, so that most choices are among equals, and sizes differ by who was chosen."""
    program = tiny_program(depth=4, tokens="1:5,2:3")
    pos = np.zeros_like(program.weights["stem.pos"])
    program = program.with_weights({"stem.pos": pos})
    images = tiny_images(program.spec, 3)
    images[:, :, 8:] = images[:, :, :8].repeat(3, axis=2).reshape(images[:, :, 8:].shape)
    images[0] = 128
    expected, got = answers(program, images, runtime, tmp_path)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_later_branches_need_less_memory() -> None:
    """The bound is the most of all branches, so it falls once the first ones are no longer the largest."""
    options: dict[str, Any] = {"depth": 4, "image": (64, 64), "dim": 64}

    def peaks(tokens: str) -> dict[str, int]:
        found: dict[str, int] = {}
        made = bound(assemble(tiny_program(tokens=tokens, **options)))
        for node, live in made.timeline:
            branch = node.partition("/")[0]
            found[branch] = max(found.get(branch, 0), live - made.bound.weights_bytes)
        return found

    dense, merged = peaks(""), peaks("1:32,2:16")
    assert all(merged[name] < dense[name] for name in ("b00_ffn", "b01_mhsa", "b01_ffn", "b02_mhsa", "b02_ffn"))
