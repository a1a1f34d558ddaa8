"""T2T-ViT's stem: its kernels against numpy, and whole models against the reference, float and quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgevit.backends.reference import reference_with_margins
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.program.spec import StemKind, StemSpec
from edgevit.schema.claims import Tolerance
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import load_target
from edgevit.verify.parity import ALL_OPEN, ALL_SKIPPED, check_parity
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_spec, tiny_weights

import_or_skip()

from edgevit.backends import tvm as backend  # noqa: E402
from edgevit.backends.tvm.codegen import integers  # noqa: E402
from edgevit.backends.tvm.codegen.code import Code, buffer, tensor  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena, Place  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Tile, isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.kernels import performer, soft_split  # noqa: E402
from edgevit.backends.tvm.kernels.soft_split import Split  # noqa: E402
from edgevit.backends.tvm.parts import t2t_stem as stages  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call, matrix  # noqa: E402
from tests.backends.tvm.test_emit_int8 import planned  # noqa: E402

RNG = np.random.default_rng(0)
KINDS: tuple[StemKind, ...] = ("t2t_performer", "t2t_transformer")
# Measured: 2.4e-6 of the logits' deviation in float, 5e-7 in int8 until an input tips over to the next integer.
FLOAT = Tolerance(max_error=5e-5, min_cosine=0.999999, gate_margin=1e-4, max_flips=0.05)
INT8 = Tolerance(max_error=0.1, min_cosine=0.999, gate_margin=0.02, max_flips=0.1)


def t2t(kind: StemKind, token_dim: int) -> Program:
    stem = StemSpec(kind=kind, patch=16, prefix=1, norm=False, token_dim=token_dim)
    spec = replace(tiny_spec(gated=True, image=(64, 96)), stem=stem)
    return Program(spec=spec, weights=tiny_weights(spec, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("token_dim", "int8"), [(16, False), (12, False), (12, True)])
def test_a_model_is_the_reference(kind: StemKind, token_dim: int, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "BLOCK_BYTES", 1 << 15)  # several blocks of a small image
    # Inputs that tip over to the next integer move so small a model by half of its logits' deviation.
    monkeypatch.setattr(integers, "COARSE_STEP", np.inf)
    program = t2t(kind, token_dim)
    plan: QuantPlan | None = planned(program) if int8 else None
    lowered = lower(program, AVX2, plan)
    assert ("stem" in {counted.linear for _, counted in lowered.int8}) is int8
    reference = reference_with_margins(assemble(program, plan), optimised=False)
    efforts = {"real": 0.0, "all_open": ALL_OPEN, "all_skipped": ALL_SKIPPED}
    images, tolerance = tiny_images(program.spec, 2), INT8 if int8 else FLOAT
    check_parity(reference, library.runner(lowered), images, tolerance, efforts=efforts)


def test_windows_are_never_held_all_at_once() -> None:
    """T2T-ViT-7's sizes: 1.9 MB of windows and 2.4 MB of query, key and value, were they made at once."""
    stem = StemSpec(kind="t2t_performer", patch=16, prefix=1, norm=False, token_dim=64)
    spec = replace(tiny_spec(dim=256, heads=4, depth=1, image=(224, 224)), stem=stem)
    needed = backend.predict(Program(spec=spec, weights=tiny_weights(spec, 1)), None, load_target("x86-64-v3-tvm"))
    assert 1e6 < needed.arena < 1.5e6


@pytest.mark.parametrize("name", ["avx512", "neon"])
def test_it_compiles_for_other_instruction_sets(name: str) -> None:
    assert "main" in library.build(lower(t2t("t2t_performer", 16), isa(name))).as_text()


def windows(values: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(values, ((padding, padding), (padding, padding), (0, 0)))
    down, right = ((n - kernel) // stride + 1 for n in padded.shape[:2])
    rows = [
        padded[r * stride : r * stride + kernel, c * stride : c * stride + kernel].ravel()
        for r in range(down)
        for c in range(right)
    ]
    return np.stack(rows)


def kernel(arena: Arena, body: Callable[..., None], *arguments: Any, image: Any = None) -> Any:
    """A function of nothing but `body(code, lanes, [the image's pixels,] memory, *arguments)`."""
    code, memory, flat = Code(), buffer("arena", arena.size), []
    if image is not None:
        flat = [code.flat(image, "uint8")]
    body(code, AVX2.lanes, *flat, memory, *arguments)
    return code.function([memory] if image is None else [image, memory])


def split_in_blocks(split: Split, arena: Arena, memory: np.ndarray, lines: Callable[[int, Place], None]) -> np.ndarray:
    """All windows, after `lines` of every block."""
    place, target = arena.place(*split.lines), arena.place(split.block, split.width)
    assert memory.size >= arena.size
    found = []
    for block in range(split.blocks):
        memory[place.offset : target.end] = np.nan
        lines(block, place)
        call(kernel(arena, soft_split.unfold, split, place, target), memory[: arena.size])
        beyond = memory[target.offset : target.end].reshape(target.rows, target.stride)[:, target.width :]
        assert not beyond.any()
        found.append(matrix(memory, target).copy())
    return np.concatenate(found)


@pytest.mark.parametrize("down", [1, 2, 4])
def test_an_image_is_normalised_and_split(down: int) -> None:
    split = Split(rows=16, columns=24, channels=3, kernel=7, stride=4, padding=2, down=down)
    pixels = RNG.integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    scale, shift = (0.01, 0.02, 0.03), (0.5, 1.0, 1.5)
    arena, memory = Arena(8), np.empty(1 << 14, np.float32)

    def lines(block: int, place: Place) -> None:
        image = tensor("image", pixels.shape, "uint8")
        made = kernel(arena, soft_split.image_lines, split, block, scale, shift, place, image=image)
        call(made, pixels, memory[: arena.size])

    found = split_in_blocks(split, arena, memory, lines)
    expected = windows(pixels[0] * np.array(scale) - np.array(shift), 7, 4, 2)
    assert expected.shape == (split.windows, split.width)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 12])
def test_a_map_of_tokens_is_split(channels: int) -> None:
    split = Split(rows=6, columns=4, channels=channels, kernel=3, stride=2, padding=1, down=1)
    arena, memory = Arena(8), np.empty(1 << 13, np.float32)
    source = arena.place(24, channels)
    matrix(memory, source)[...] = RNG.standard_normal((24, channels))

    def lines(block: int, place: Place) -> None:
        call(kernel(arena, soft_split.map_lines, split, block, source, place), memory[: arena.size])

    found = split_in_blocks(split, arena, memory, lines)
    np.testing.assert_array_equal(found, windows(matrix(memory, source).reshape(6, 4, channels), 3, 2, 1))


Shape = tuple[int, int, int]


@pytest.mark.parametrize("shape", [(50, 16, 8), (37, 20, 10), (5, 24, 12)])
def test_linear_attention(shape: Shape) -> None:
    rows, width, count = shape
    arena, tile = Arena(8), Tile(rows=3, vectors=2)
    query, key, value = (arena.place(rows, width) for _ in range(3))
    features = [arena.place(rows, count) for _ in range(2)]
    mixed, total, target = arena.place(count, width), arena.place(1, count), arena.place(rows, width)
    memory = np.zeros(arena.size, np.float32)
    w = RNG.standard_normal((count, width)) * 0.3
    for place in (query, key, value):
        matrix(memory, place)[...] = RNG.standard_normal((rows, width)) * 0.5
    q, k, v = (matrix(memory, place).astype(np.float64) for place in (query, key, value))
    for source, place in zip((query, key), features, strict=True):
        matrix(memory, place)[...] = matrix(memory, source) @ w.T
        call(kernel(arena, performer.features, source, place, count), memory)
    qp, kp = (np.exp(x @ w.T - (x**2).sum(1, keepdims=True) / 2) / count**0.5 for x in (q, k))
    np.testing.assert_allclose(matrix(memory, features[0]), qp, rtol=2e-6)
    for place in (mixed, total):
        matrix(memory, place)[...] = np.nan
        call(kernel(arena, performer.clear, place), memory)
    for times in (1, 2):  # it adds to what is there
        call(kernel(arena, performer.add_keys, features[1], value, mixed, total, tile), memory)
        np.testing.assert_allclose(matrix(memory, mixed), times * kp.T @ v, atol=2e-5)
        np.testing.assert_allclose(matrix(memory, total)[0], times * kp.sum(0), rtol=1e-5)
    call(kernel(arena, performer.mix, features[0], mixed, total, target, tile), memory)
    expected = qp @ (kp.T @ v) / (qp @ kp.sum(0)[:, None] + performer.GUARD / 2)
    np.testing.assert_allclose(matrix(memory, target), expected, atol=1e-5)
