"""The emitted model against the reference, over every form a Program can take, and what a closed gate leaves undone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.backends.reference import reference_with_margins
from edgevit.errors import ImagesError, ParityError
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.claims import Tolerance
from edgevit.verify.parity import FLOAT, check_parity
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from dataclasses import replace  # noqa: E402

from edgevit.backends.tvm.codegen.schedules import Tile, isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import Lowered, lower  # noqa: E402
from edgevit.backends.tvm.run.runner import TvmRunner  # noqa: E402

AVX2 = isa("avx2")
# Measured: 1.4e-6 of the logits' deviation at worst.
TIGHT = Tolerance(max_error=2e-5, min_cosine=0.999999, gate_margin=1e-5, max_flips=0.05)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated, skip rows": {"gated": True, "skip": True},
    "gates on the mean": {"gated": True, "skip": True, "gate_pool": "mean"},
    "distilled": {"gated": True, "skip": True, "prefix": 2, "head_prefix": 2},
    "no prefix": {"gated": True, "prefix": 0},
    "registers, qk-norm": {"gated": True, "prefix": 5, "qk_norm": True},
    "mean head, stem norm": {"gated": True, "pool": "mean", "stem_norm": True, "activation": "gelu_tanh"},
    "widths of no whole vector": {"gated": True, "skip": True, "dim": 36, "heads": 3, "hidden": 50},
    "the same, joined and normed": {
        "gated": True,
        "dim": 36,
        "heads": 3,
        "prefix": 2,
        "head_prefix": 2,
        "pooled_norm": True,
        "qk_norm": True,
        "activation": "silu",
    },
    "removed": {
        "gated": True,
        "depth": 3,
        "skip": True,
        "removed": ("b00_ffn", "b01_mhsa", "b02_mhsa"),
        "patch": 4,
        "image": (20, 28),
        "activation": "quick_gelu",
    },
    "merged": {"depth": 3, "tokens": "1:4,2:3", "gated": True, "skip": True, "prefix": 2, "head_prefix": 2},
    "merged, means weighed": {"depth": 4, "tokens": "1:5,2:4,3:2", "gated": True, "gate_pool": "mean", "prefix": 0},
    "merged, of no whole vector": {"depth": 3, "tokens": "1:8", "dim": 36, "heads": 3, "pool": "mean", "skip": True},
}


def runner(program: Program, **options: Any) -> TvmRunner:
    return library.runner(lower(program, AVX2, **options))


def calls(model: TvmRunner, image: np.ndarray, effort: float) -> Counter[str]:
    """How often each function of the library was called in one run."""
    seen: Counter[str] = Counter()

    def note(_: Any, name: str, before: bool, *rest: Any) -> None:
        seen[name] += bool(before)

    model._machine.set_instrument(note)
    model.run(image, effort)
    return seen


@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_is_the_reference_on_every_path(name: str) -> None:
    program = tiny_program(seed=1, **VARIANTS[name])
    result = check_parity(
        reference_with_margins(assemble(program)), runner(program), tiny_images(program.spec, 4), TIGHT
    )
    opened = {p.path: p.open for p in result.paths}
    if program.spec.gated:
        assert opened["all_skipped"] < opened["drawn_4"] < opened["all_open"]


def test_parity_sees_a_wrong_weight() -> None:
    program = tiny_program(gated=True, skip=True)
    wrong = program.weights["b01_ffn.skip"].copy()
    wrong[0, 0] += 0.01
    with pytest.raises(ParityError):
        check_parity(
            reference_with_margins(assemble(program)),
            runner(program.with_weights({"b01_ffn.skip": wrong})),
            tiny_images(program.spec, 4),
            TIGHT,
        )


def test_without_gating_every_branch_runs() -> None:
    program = tiny_program(gated=True, skip=True)
    image = tiny_images(program.spec, 1)
    logits, gates = runner(program, gating=False).run(image, -1e9)
    assert gates.tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(logits, runner(program).run(image, 1e9)[0], atol=1e-5)


def test_a_closed_branch_calls_none_of_its_kernels() -> None:
    program = tiny_program(gated=True)
    model = runner(program)
    image = tiny_images(program.spec, 1)
    work = ("attention", "fc1", "fc2", "qkv", "q_", "kv_", "proj", "norm")
    count = {e: sum(n for k, n in calls(model, image, e).items() if k.startswith(work)) for e in (1e9, -1e9)}
    assert count[-1e9] == 1  # the head's norm
    assert count[1e9] == 1 + 2 * (4 + 3) + 1  # the last attention makes query apart from key and value


def test_weights_of_branches_that_a_gate_can_close_lie_behind_the_rest() -> None:
    program = tiny_program(gated=True, skip=True)
    names = [name for name, _ in lower(program, AVX2).weights]
    assert names[-4:] == [branch.name for branch in program.spec.branches]
    assert {"stem", "head", "b01_ffn.gate", "b01_ffn.skip"} <= set(names[:-4])


def test_equal_shapes_share_their_kernels() -> None:
    shared = lower(tiny_program(depth=6), AVX2)
    names = [str(v.name_hint) for v in shared.module.functions]
    assert sum(name.startswith("fc1") for name in names) == 2  # all tokens, and the rows the head reads
    assert len([name for name in names if name.startswith("run_")]) == 6


def test_the_model_allocates_nothing_and_stays_in_its_arena() -> None:
    program = tiny_program(gated=True, skip=True, dim=36, heads=3, hidden=50)
    lowered = lower(program, AVX2)
    assert "alloc" not in library.build(lowered).as_text()
    # Whatever was in the arena before makes no difference.
    model = library.runner(lowered)
    images = tiny_images(program.spec, 3)
    first = [model.run(image[None], 0.3) for image in images]
    second = [model.run(image[None], 0.3) for image in images[::-1]][::-1]
    for (a, b), (c, d) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_the_arena_is_the_largest_stage_not_the_sum() -> None:
    deep, shallow = (lower(tiny_program(gated=True, depth=depth), AVX2).arena for depth in (8, 2))
    assert deep == shallow


def test_equal_programs_give_equal_modules() -> None:
    def text(lowered: Lowered) -> str:
        return str(lowered.module) + "".join(str(w.sum()) for _, w in lowered.weights)

    assert text(lower(tiny_program(gated=True), AVX2)) == text(lower(tiny_program(gated=True), AVX2))


def test_any_tile_gives_the_same_function() -> None:
    program = tiny_program()
    image = tiny_images(program.spec, 1)
    expected, _ = runner(program).run(image)
    for tile in (Tile(rows=1, vectors=1), Tile(rows=5, vectors=2), Tile(rows=2, vectors=4)):
        got, _ = runner(program, choose=lambda *_, tile=tile: tile).run(image)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["avx512", "neon"])
def test_other_instruction_sets_compile(name: str) -> None:
    program = tiny_program(gated=True, skip=True)
    assert "main" in library.build(lower(program, isa(name))).as_text()


def test_bad_images_are_refused() -> None:
    model = runner(tiny_program())
    with pytest.raises(ImagesError, match=r"\[1, 32, 32, 3\]"):
        model.run(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ImagesError, match="float32"):
        model.run(np.zeros((1, 32, 32, 3), np.float32))


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224.fb_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"], ids=("deit", "vit")
)
def test_real_models(data: Path, name: str) -> None:
    from edgevit.frontends.resolve import resolve
    from tests.frontends.real import real_images

    program = resolve(name, weights=data / f"{name}.safetensors")
    model = runner(program)
    # Measured: 2.1e-5 (DeiT-Ti) and 7.4e-6 (ViT-Ti) of the logits' deviation.
    tolerance = replace(TIGHT, max_error=1e-4)
    assert tolerance.max_error < FLOAT.max_error
    check_parity(reference_with_margins(assemble(program)), model, real_images(4), tolerance)
