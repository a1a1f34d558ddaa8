"""Models whose number of tokens follows the image: what torch says, and to the bit what the same fixed numbers give."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.program.program import Program
from edgevit.program.tokens import fewest_left, most_left, with_merges
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names
from edgevit.torch_form.vit import Vit, normalise
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen import threads as shares  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.run.runner import TvmRunner  # noqa: E402

AVX2 = isa("avx2")
VARIANTS: dict[str, dict[str, Any]] = {
    "one point": {"tokens": "1:0-30@0.83"},
    "half of what is left": {"tokens": "1:0-32@0.84,2:0-32@0.84,3:0-32@0.86"},
    "guarded": {"tokens": "1:0-30@1.1,2:3", "shift": True, "dim": 36, "heads": 3},
    "gates on the mean": {"tokens": "1:1-30@0.84,2:1-15@0.85", "gated": True, "skip": True, "gate_pool": "mean"},
    "fixed before and after": {"tokens": "1:7,2:2-23@0.8,3:3", "prefix": 2, "head_prefix": 2, "qk_norm": True},
    "mean head": {"tokens": "1:1-31@0.85,3:1-15@0.85", "prefix": 0, "dim": 36, "heads": 3, "hidden": 50},
    "tiles of 16": {"tokens": "1:0-128@0.83,2:0-128@0.85", "image": (128, 128)},
    "steps of 8": {"tokens": "1:0-32@0.84,2:3-32@0.84", "stepped": True},
}


def drawn(name: str) -> tuple[Program, np.ndarray]:
    """A program with 64 patches or more, and images whose patches are more or less alike."""
    program = tiny_program(**{"seed": 1, "depth": 4, "image": (64, 64), **VARIANTS[name]})
    images = tiny_images(program.spec, 6).astype(np.int64)
    for index in range(len(images)):
        images[index] = (images[index] * (index + 1) + 128 * (5 - index)) // 6
    return program, images.astype(np.uint8)


def runner(program: Program, plan: QuantPlan | None = None, threads: int = 1) -> TvmRunner:
    return library.runner(lower(program, replace(AVX2, threads=threads), plan))


def planned(program: Program) -> QuantPlan:
    """A plan that has every Linear and all attention in int8; how exact it is matters to nobody here."""
    linears = tuple(LinearPlan(name=n, int8=True, scale=0.05, zero_point=128) for n in linear_names(program.spec))
    return QuantPlan(linears=linears, weight_bits=7, attentions=attention_names(program.spec))


def spoil(model: TvmRunner) -> None:
    """What lies in the arena before a run is anybody's."""
    np.from_dlpack(model._arguments[2])[...] = np.nan


def fixed(program: Program, left: tuple[int, ...]) -> Program:
    """The same with as many pairs merged at every point as one image's run says."""
    before = [program.spec.patches, *left]
    points = zip(program.spec.merges, before, before[1:], strict=False)
    merges = [replace(p, count=a - b, least=0, threshold=None) for p, a, b in points]
    return Program(spec=with_merges(program.spec, merges), weights=program.weights)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_image_has_the_tokens_that_torch_says(name: str) -> None:
    program, images = drawn(name)
    model, reference, seen = runner(program), Vit(program), set()
    for effort in (0.0, 1.0, -1.5, np.inf, -np.inf):
        with torch.no_grad():
            expected = reference.answer(normalise(program.spec, images), effort)
        for index, image in enumerate(images):
            spoil(model)
            logits, gates, tokens = model.answer(image[None], effort)
            assert tokens.tolist() == expected.tokens[index].tolist(), (effort, index)
            assert gates.tolist() == expected.gates[index].tolist()
            np.testing.assert_allclose(logits[0], expected.logits[index].numpy(), atol=5e-5)
            seen.add(tuple(tokens.tolist()))
    assert len(seen) > 3 and {most_left(program.spec), fewest_left(program.spec)} <= seen


@pytest.mark.parametrize("int8", [False, True], ids=("float", "int8"))
@pytest.mark.parametrize("name", ["gates on the mean", "fixed before and after", "mean head"])
def test_it_is_to_the_bit_what_fixed_numbers_give(name: str, int8: bool) -> None:
    program, images = drawn(name)
    plan = planned(program) if int8 else None
    model = runner(program, plan)
    runs: dict[tuple[int, ...], tuple[np.ndarray, float, np.ndarray]] = {}
    for image, effort in product(images, (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)):
        logits, _, tokens = model.answer(image[None], effort)
        runs.setdefault(tuple(tokens.tolist()), (image, effort, logits))
    ends = most_left(program.spec), fewest_left(program.spec)
    between = [left for left in runs if left not in ends]
    assert between
    image, effort, logits = runs[between[0]]
    expected, _ = runner(fixed(program, between[0]), plan).run(image[None], effort)
    spoil(model)
    np.testing.assert_array_equal(model.run(image[None], effort)[0], logits)
    np.testing.assert_array_equal(expected, logits)


def test_threads_change_no_bit() -> None:
    """Wide enough that kernels are shared out; parts that an image leaves empty are no trouble."""
    program = tiny_program(seed=1, depth=2, image=(96, 96), dim=96, heads=3, tokens="1:1-72@0.7")
    images = tiny_images(program.spec, 2)
    alone, together = runner(program), runner(program, threads=3)
    for effort in (0.0, np.inf, -np.inf):
        for image in images:
            expected = alone.answer(image[None], effort)
            spoil(together)
            for a, b in zip(together.answer(image[None], effort), expected, strict=True):
                np.testing.assert_array_equal(a, b)
    together.close()


def test_threads_change_no_bit_of_int8_attention_over_the_tokens_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads pack all heads before they attend with any, however many tokens an image has."""
    monkeypatch.setattr(shares, "WORTH", 0)
    program = tiny_program(seed=1, depth=2, dim=96, heads=3, tokens="1:0-6@0.2", gated=True)
    plan = planned(program)
    alone, together = runner(program, plan), runner(program, plan, threads=2)
    for effort in (0.0, np.inf, -np.inf):
        for image in tiny_images(program.spec, 2):
            expected = alone.answer(image[None], effort)
            spoil(together)
            for a, b in zip(together.answer(image[None], effort), expected, strict=True):
                np.testing.assert_array_equal(a, b)
    together.close()


def test_nothing_is_written_behind_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries around all that a run is given, for the image with the most tokens, the fewest, and drawn ones."""
    guards: list[np.ndarray] = []

    def guarded(shape: tuple[int, ...], kind: Any) -> np.ndarray:
        size, guard = int(np.prod(shape)) * np.dtype(kind).itemsize, 4096
        raw = np.full(size + 2 * guard + 64, 0xA5, np.uint8)
        start = guard + -(raw.ctypes.data + guard) % 64
        guards.extend((raw[:start], raw[start + size :]))
        array: np.ndarray = raw[start : start + size].view(kind).reshape(shape)
        return array

    monkeypatch.setattr("edgevit.backends.tvm.run.runner.aligned", guarded)
    program, images = drawn("mean head")
    for plan in (None, planned(program)):
        model = runner(program, plan)
        for effort in (0.0, np.inf, -np.inf):
            for image in images[:3]:
                model.run(image[None], effort)
        assert all((guard == 0xA5).all() for guard in guards)


def test_memory_is_that_of_the_image_with_the_most_tokens() -> None:
    """It falls with what every image merges, not with what some may."""
    arena = {
        plan: lower(tiny_program(depth=3, image=(64, 64), tokens=plan), AVX2).arena
        for plan in ("1:0-30@0.5", "1:24-30@0.5", "1:24")
    }
    dense = lower(tiny_program(depth=3, image=(64, 64)), AVX2).arena
    assert arena["1:24-30@0.5"] == arena["1:24"] <= arena["1:0-30@0.5"]
    assert dense <= arena["1:0-30@0.5"] < 1.2 * dense


@pytest.mark.parametrize("name", ["avx512vnni", "dotprod"])
def test_other_instruction_sets_compile(name: str) -> None:
    program, _ = drawn("gates on the mean")
    assert "main" in library.build(lower(program, isa(name), planned(program))).as_text()


def test_kernels_stay_calls_on_buffers_of_fixed_sizes() -> None:
    program, _ = drawn("gates on the mean")
    text = str(lower(program, AVX2).module["main"])
    assert "alloc" not in text and 'tokens: R.Tensor((2,), dtype="int32")' in text
