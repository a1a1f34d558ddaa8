"""Bounds of random Programs: those of the first seeds hold, a broken bound is told, and seeds draw the same again."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import random_bounds
from edgevit.backends.onnxruntime import memory_bound as ort_bound
from edgevit.schema.memory_bound import BoundDetail
from tests.backends.tvm.available import needs_tvm


def test_a_seed_draws_the_same_program_again() -> None:
    first, again = random_bounds.draw_program(3), random_bounds.draw_program(3)
    assert first.spec == again.spec
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)
    structures = {random_bounds.draw_program(seed).spec.tokens for seed in range(20)}
    assert len(structures) > 10


@needs_tvm
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the targets tried are for x86-64")
@pytest.mark.parametrize("seed", range(6))
def test_tvms_bound_holds_on_every_path_of_a_random_program(seed: int) -> None:
    tried = random_bounds.try_tvm(seed)
    assert not tried.fault
    assert tried.ratio is not None and tried.ratio >= 1


def test_a_bound_that_does_not_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ort_bound.bound

    def half(model: Path) -> BoundDetail:
        made = whole(model)
        return replace(made, bound=replace(made.bound, arena_bytes=made.bound.arena_bytes // 2))

    monkeypatch.setattr(ort_bound, "bound", half)
    tried = random_bounds.try_onnxruntime(0)
    assert "does not hold" in tried.fault
    assert "seed 0, onnxruntime: the memory bound" in random_bounds.table([tried], "command")
