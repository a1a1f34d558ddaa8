"""T2T-ViT's stem: its kernels against numpy, and whole models against the reference, float and quantized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevit.backends.reference import reference_with_margins
from edgevit.lower.assemble import assemble
from edgevit.models.program import Program
from edgevit.quantspec import QuantPlan
from edgevit.spec import StemKind, StemSpec
from edgevit.verify.parity import ALL_OPEN, ALL_SKIPPED, Tolerance, check_parity
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_spec, tiny_weights

import_or_skip()

from edgevit.backends.tvm import library, performer, soft_split  # noqa: E402
from edgevit.backends.tvm.emit import lower  # noqa: E402
from edgevit.backends.tvm.layout import Arena  # noqa: E402
from edgevit.backends.tvm.schedules import Tile, isa  # noqa: E402
from edgevit.backends.tvm.soft_split import Split  # noqa: E402
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
def test_a_model_is_the_reference(kind: StemKind, token_dim: int, int8: bool) -> None:
    program = t2t(kind, token_dim)
    plan: QuantPlan | None = planned(program) if int8 else None
    lowered = lower(program, AVX2, plan)
    assert ("stem" in {counted.linear for _, counted in lowered.int8}) is int8
    reference = reference_with_margins(assemble(program, plan), optimised=False)
    efforts = {"real": 0.0, "all_open": ALL_OPEN, "all_skipped": ALL_SKIPPED}
    images, tolerance = tiny_images(program.spec, 2), INT8 if int8 else FLOAT
    check_parity(reference, library.runner(lowered), images, tolerance, efforts=efforts)


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


def test_an_image_is_normalised_and_split() -> None:
    split = Split(rows=16, columns=24, channels=3, kernel=7, stride=4, padding=2)
    image = RNG.integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    scale, shift = (0.01, 0.02, 0.03), (0.5, 1.0, 1.5)
    arena = Arena(8)
    lines, target = arena.place(*split.lines), arena.place(split.windows, split.width)
    memory = np.full(arena.size, np.nan, np.float32)
    call(soft_split.image_lines(AVX2, arena.size, split, scale, shift, lines), image, memory)
    call(soft_split.unfold(AVX2, arena.size, split, lines, target), memory)
    expected = windows(image[0] * np.array(scale) - np.array(shift), 7, 4, 2)
    assert expected.shape == (split.windows, split.width)
    np.testing.assert_allclose(matrix(memory, target), expected, atol=1e-5)
    beyond = memory[target.offset : target.end].reshape(target.rows, target.stride)[:, target.width :]
    assert beyond.size and not beyond.any()


@pytest.mark.parametrize("channels", [8, 12])
def test_a_map_of_tokens_is_split(channels: int) -> None:
    split = Split(rows=6, columns=4, channels=channels, kernel=3, stride=2, padding=1)
    arena = Arena(8)
    source, lines = arena.place(24, channels), arena.place(*split.lines)
    target = arena.place(split.windows, split.width)
    memory = np.full(arena.size, np.nan, np.float32)
    matrix(memory, source)[...] = RNG.standard_normal((24, channels))
    call(soft_split.map_lines(AVX2, arena.size, split, source, lines), memory)
    call(soft_split.unfold(AVX2, arena.size, split, lines, target), memory)
    expected = windows(matrix(memory, source).reshape(6, 4, channels), 3, 2, 1)
    np.testing.assert_array_equal(matrix(memory, target), expected)


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
        call(performer.features(AVX2, arena.size, source, place, count), memory)
    qp, kp = (np.exp(x @ w.T - (x**2).sum(1, keepdims=True) / 2) / count**0.5 for x in (q, k))
    np.testing.assert_allclose(matrix(memory, features[0]), qp, rtol=2e-6)
    call(performer.keys_and_values(AVX2, arena.size, features[1], value, mixed, total, tile), memory)
    np.testing.assert_allclose(matrix(memory, mixed), kp.T @ v, atol=1e-5)
    np.testing.assert_allclose(matrix(memory, total)[0], kp.sum(0), rtol=1e-5)
    call(performer.mix(AVX2, arena.size, features[0], mixed, total, target, tile), memory)
    expected = qp @ (kp.T @ v) / (qp @ kp.sum(0)[:, None] + performer.GUARD)
    np.testing.assert_allclose(matrix(memory, target), expected, atol=1e-5)
