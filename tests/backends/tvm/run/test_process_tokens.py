"""The C++ runner of a model whose number of tokens follows the image: here, and for aarch64 in an emulator."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

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

from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.inspect import bytecode, shipped  # noqa: E402
from edgevit.backends.tvm.run import runner  # noqa: E402
from edgevit.backends.tvm.run.process import ProcessRunner  # noqa: E402
from edgevit.backends.tvm.run.runner import LIBRARY, MANIFEST, read_manifest  # noqa: E402
from tests.backends.tvm import native_runner  # noqa: E402

PROGRAM = tiny_program(seed=1, depth=3, image=(64, 64), gated=True, skip=True, tokens="1:1-30@0.8,2:1-15@0.8")
IMAGES = tiny_images(PROGRAM.spec, 3)[:, None]
EFFORTS = (0.0, float("inf"), -float("inf"))


def int8() -> QuantPlan:
    linears = tuple(LinearPlan(name=n, int8=True, scale=0.05, zero_point=128) for n in linear_names(PROGRAM.spec))
    return QuantPlan(linears=linears, weight_bits=7, attentions=attention_names(PROGRAM.spec))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
def test_it_gives_what_the_runner_here_gives(tmp_path: Path) -> None:
    library.write(lower(PROGRAM, isa("avx2")), tmp_path)
    native = native_runner.sanitized(tmp_path)
    manifest = read_manifest(tmp_path / MANIFEST)
    here = runner.load(tmp_path)
    there = ProcessRunner((str(native.path),), tmp_path, manifest, trace=True, environment=native.environment)
    seen = set()
    for image in IMAGES:
        for effort in EFFORTS:
            told = there.answer(image, effort)
            for a, b in zip(here.answer(image, effort), told, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
            seen.add(tuple(told.tokens.tolist()))
    assert {most_left(PROGRAM.spec), fewest_left(PROGRAM.spec)} <= seen
    there.close()


def test_the_bound_counts_the_output(tmp_path: Path) -> None:
    library.write(lower(PROGRAM, isa("avx2")), tmp_path)
    manifest = read_manifest(tmp_path / MANIFEST)
    assert manifest.points == 2
    needed = bytecode.bound(shipped.read(tmp_path / LIBRARY), manifest)
    assert needed.outputs == bytecode.bound(shipped.read(tmp_path / LIBRARY), replace(manifest, points=0)).outputs + 8


def test_on_aarch64_every_image_has_the_tokens_that_torch_says(tmp_path: Path) -> None:
    with torch.no_grad():
        answers = {effort: Vit(PROGRAM).answer(normalise(PROGRAM.spec, IMAGES[:2, 0]), effort) for effort in EFFORTS}
    there = crossed(PROGRAM, "neon", "cortex-a72", None, tmp_path)
    for effort, answer in answers.items():
        for index, image in enumerate(IMAGES[:2]):
            logits, _, tokens = there.answer(image, effort)
            np.testing.assert_allclose(logits[0], answer.logits[index].numpy(), atol=5e-5)
            assert tokens.tolist() == answer.tokens[index].tolist()
    there.close()


def test_int8_on_aarch64_is_to_the_bit_what_fixed_numbers_give(tmp_path: Path) -> None:
    """Depth comes in steps of 16 there, which no number of tokens has to be whole in."""
    drawn = crossed(PROGRAM, "dotprod", "cortex-a76", int8(), tmp_path / "drawn")
    logits, gates, tokens = drawn.answer(IMAGES[0])
    assert fewest_left(PROGRAM.spec) != (left := tuple(tokens.tolist())) != most_left(PROGRAM.spec)
    before = [PROGRAM.spec.patches, *left]
    points = zip(PROGRAM.spec.merges, before, left, strict=False)
    merges = [replace(point, count=a - b, least=0, threshold=None) for point, a, b in points]
    same = Program(spec=with_merges(PROGRAM.spec, merges), weights=PROGRAM.weights)
    fixed = crossed(same, "dotprod", "cortex-a76", int8(), tmp_path / "fixed")
    for a, b in zip(fixed.run(IMAGES[0]), (logits, gates), strict=True):
        np.testing.assert_array_equal(a, b)
    drawn.close()
    fixed.close()


def crossed(program: Program, name: str, cpu: str, plan: QuantPlan | None, folder: Path) -> ProcessRunner:
    """A model for aarch64 in the emulator of a CPU."""
    folder.mkdir(exist_ok=True)
    library.write(lower(program, isa(name), plan), folder)
    native = native_runner.emulated(folder).on(cpu)
    return ProcessRunner((*native.before, str(native.path)), folder, read_manifest(folder / MANIFEST))
