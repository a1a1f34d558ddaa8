"""Bounds of random Programs: those of the first seeds hold, a broken bound is told, and seeds draw the same again."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

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


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    def pretend(runtime: str) -> Callable[[int], random_bounds.Tried]:
        def run(seed: int) -> random_bounds.Tried:
            if (runtime, seed) == ("tvm", stop):
                raise KeyboardInterrupt
            tried.append((runtime, seed))
            return random_bounds._tried(random_bounds.draw_program(seed), seed, runtime, None, 1.5, "")

        return run

    for runtime in ("onnxruntime", "tvm"):
        monkeypatch.setattr(random_bounds, f"try_{runtime}", pretend(runtime))
    words, stop = ["--onnxruntime", "2", "--tvm", "3", "-o", str(tmp_path)], 1
    assert CliRunner().invoke(random_bounds.main, words).exit_code == 1
    stop = -1
    assert CliRunner().invoke(random_bounds.main, [*words, "--resume"]).exit_code == 0
    assert tried == [("onnxruntime", 0), ("onnxruntime", 1), ("tvm", 0), ("tvm", 1), ("tvm", 2)]
    assert "| tvm | float | 3 | 3 |" in (tmp_path / "random-bounds.md").read_text()


def test_going_on_without_an_earlier_run_begins_anew(tmp_path: Path) -> None:
    words = ["--onnxruntime", "0", "--tvm", "0", "--resume", "-o", str(tmp_path / "new")]
    done = CliRunner().invoke(random_bounds.main, words)
    assert (done.exit_code, "0 of 0 held" in done.output) == (0, True)


@pytest.mark.parametrize(
    ("left", "told"),
    [("[{", "is damaged"), ("", "is damaged"), ("{}", "expected a list"), ('[{"seed": 1}]', "of another version")],
)
def test_what_is_not_an_earlier_run_is_one_clear_error(tmp_path: Path, left: str, told: str) -> None:
    (tmp_path / "random-bounds.json").write_text(left)
    words = ["--onnxruntime", "0", "--tvm", "0", "--resume", "-o", str(tmp_path)]
    done = CliRunner().invoke(random_bounds.main, words)
    assert done.exit_code == 1 and told in done.output and "run without --resume" in done.output
    assert (tmp_path / "random-bounds.json").read_text() == left
    assert random_bounds.read(tmp_path / "none.json") == []
