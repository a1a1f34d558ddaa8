"""Merges in the lowered graph: the same pairs as in torch on every runtime, also among equals; and fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.backends import onnx_backend
from edgevit.backends.onnxruntime.memory_bound import bound
from edgevit.frontends.t2t import t2t_program
from edgevit.onnx_form.assemble import assemble
from edgevit.onnx_form.check import check_model
from edgevit.program.program import Program
from edgevit.program.tokens import read_plan, with_merges
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


ADAPTIVE: tuple[dict[str, Any], ...] = (
    {"tokens": "1:0-27@0.85,2:3-17@0.8,3:1"},
    {"tokens": "1:0-32@0.85,2:0-32@0.83,3:0-32@0.85"},
    {"tokens": "1:5,2:2-13@0.85,3:3", "prefix": 2, "qk_norm": True},
    {"tokens": "1:5,2:2-27@1.1,3:3", "shift": True},
    {"tokens": "1:2-32@0.85,3:0-13@0.85", "gated": True, "gate_pool": "mean", "prefix": 0, "skip": True},
    {"tokens": "1:0-32@0.86,2:0-16@0.8", "gated": True, "skip": True, "removed": ("b01_ffn", "b02_mhsa")},
    {"tokens": "1:0-128@0.83,2:0-128@0.85", "image": (128, 128)},  # in tiles of 16
    {"tokens": "1:0-32@0.85,2:0-32@0.83", "stepped": True},
)


def adaptive(options: dict[str, Any] | None) -> Program:
    """A tiny Program, or a T2T-ViT, whose number of tokens follows the image."""
    if options is not None:
        return tiny_program(**{"depth": 4, "image": (64, 64), **options})
    program = t2t_program("t2t_vit_7", image_size=(64, 96))
    return program.with_weights({}, with_merges(program.spec, read_plan("2:0-12@0.88,4:1-5@0.9", program.spec)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("options", [*ADAPTIVE, None])
def test_a_runtime_counts_the_tokens_of_an_image(options: dict[str, Any] | None, runtime: str, tmp_path: Path) -> None:
    program = adaptive(options)
    images, model = tiny_images(program.spec, 6), Vit(program)
    graph = assemble(program)
    check_model(graph)
    onnx_backend(runtime).compile(graph, tmp_path)
    runner = onnx_backend(runtime).load(tmp_path)
    seen = set()
    for effort in (0.0, 0.4, np.inf, -np.inf, 0.0):
        with torch.no_grad():
            expected = model.answer(normalise(program.spec, images), effort)
        for index, image in enumerate(images):
            got = runner.answer(image[None], effort)
            assert got.tokens.tolist() == expected.tokens[index].tolist() and got.tokens.dtype == np.int32
            assert got.gates.tolist() == expected.gates[index].tolist()
            np.testing.assert_allclose(got.logits[0], expected.logits[index].numpy(), atol=5e-5)
            seen.add(tuple(got.tokens))
    assert len(seen) > 2


def test_a_t2t_model_merges_on_every_runtime(tmp_path: Path) -> None:
    program = t2t_program("t2t_vit_7", image_size=(64, 96))
    program = program.with_weights({}, with_merges(program.spec, read_plan("2:6,4:4", program.spec)))
    for runtime in ("onnxruntime", "openvino"):
        folder = tmp_path / runtime
        folder.mkdir()
        expected, got = answers(program, tiny_images(program.spec, 3), runtime, folder)
        np.testing.assert_allclose(got, expected, atol=1e-4)


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
