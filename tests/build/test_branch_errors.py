"""The error after every branch: none without a plan, the rounding's with one, more where more is rounded away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgevit.build import branch_errors as module
from edgevit.build.branch_errors import branch_errors
from edgevit.pipeline import quantize
from edgevit.schema.target import load_target
from tests.tiny import tiny_images, tiny_program


def test_rounding_shows_branch_by_branch() -> None:
    program = tiny_program(depth=3)
    images = tiny_images(program.spec, 6)
    lowered, plan = quantize(program, load_target("x86-64-onnxruntime"), images)
    assert plan is not None
    errors = branch_errors(program, lowered, plan, images)
    assert len(errors) == 6 and all(error is not None and 0 < error < 0.2 for error in errors)
    float_again = branch_errors(program, program, dataclasses.replace(plan, linears=()), images)
    assert all(error is not None and error < 1e-5 for error in float_again)


def test_what_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program()
    images = tiny_images(program.spec, 2)
    assert branch_errors(program, program, None, images) == (None,) * 4
    lowered, plan = quantize(program, load_target("x86-64-onnxruntime"), images)
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    assert branch_errors(program, lowered, plan, images) == (None,) * 4


@pytest.mark.parametrize("tokens", ["1:24", "1:0-24@0.2"])
def test_merged_tokens_are_no_rounding(tokens: str) -> None:
    program = tiny_program(image=(64, 64), tokens=tokens)
    images = tiny_images(program.spec, 6)
    lowered, plan = quantize(program, load_target("x86-64-onnxruntime"), images)
    dense, dense_lowered = (
        each.with_weights({}, dataclasses.replace(each.spec, merges=())) for each in (program, lowered)
    )
    assert branch_errors(program, lowered, plan, images) == branch_errors(dense, dense_lowered, plan, images)


def test_an_error_is_a_share_of_the_stream() -> None:
    assert module._error([np.full((2, 2), 2.0)], [np.full((2, 2), 2.2)]) == pytest.approx(0.1)
