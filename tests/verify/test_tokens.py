"""Numbers of tokens against the reference, and kernels against the tokens that a run told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.backends import Answer
from edgevit.backends.onnxruntime import OnnxRuntimeRunner, compile, kernel_macs, load
from edgevit.backends.reference import reference_with_margins
from edgevit.errors import ParityError, SkipError
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program
from edgevit.program.tokens import fewest_left, most_left
from edgevit.verify.parity import FLOAT, check_parity
from edgevit.verify.tokens import PointMargins, check_token_macs, first_moved, token_use
from tests.tiny import tiny_images, tiny_program

PROGRAM = tiny_program(depth=4, image=(64, 64), tokens="1:0-32@0.85,2:3-30@0.8,3:1")
GATED = tiny_program(depth=4, image=(64, 64), tokens="1:2-32@0.85,3:0-13@0.85", gated=True, skip=True)
IMAGES = tiny_images(PROGRAM.spec, 5)


def built(program: Program, folder: Path) -> OnnxRuntimeRunner:
    compile(assemble(program), folder, formats=("onnx",))
    return load(folder)


def moved_thresholds(program: Program, by: float) -> Program:
    merges = tuple(replace(p, threshold=None if p.threshold is None else p.threshold + by) for p in program.spec.merges)
    return program.with_weights({}, replace(program.spec, merges=merges))


@pytest.mark.parametrize("program", [PROGRAM, GATED], ids=["plain", "gated"])
def test_a_build_has_the_tokens_of_its_reference(program: Program, tmp_path: Path) -> None:
    runner, reference = built(program, tmp_path), reference_with_margins(assemble(program))
    result = check_parity(reference, runner, IMAGES, FLOAT, patches=program.spec.patches)
    assert {"real", "all_open", "all_skipped"} < {p.path for p in result.paths}
    assert all(p.moved == 0 and p.compared + p.flips == len(IMAGES) for p in result.paths)
    told = {tuple(p.left for p in reference(i[None], 0.0)[3]) for i in IMAGES}
    assert len(told) > 1


def test_margins_say_what_the_number_of_pairs_is() -> None:
    reference = reference_with_margins(assemble(PROGRAM))
    for effort in (0.0, 0.5, -0.5):
        logits, gates, _, points = reference(IMAGES[:1], effort)
        assert logits.shape == (1, 10) and gates.all() and [p.branch for p in points] == [0, 2, 4]
        # Of 65 rows 64, 56, ... are left; of those again multiples of 8, or 3 fewer.
        second = (3, 9, 17, 25) if points[0].left == 64 else (3, 8, 16, 24)
        assert [p.counts for p in points] == [(0, 1, 9, 17, 25), second, (1,)]
        patches = PROGRAM.spec.patches
        for point in points:
            assert point.counts[int((point.margins > 0).sum())] == patches - point.left
            patches = point.left


def test_a_threshold_that_was_moved_is_caught(tmp_path: Path) -> None:
    runner, reference = built(moved_thresholds(PROGRAM, 0.03), tmp_path), reference_with_margins(assemble(PROGRAM))
    with pytest.raises(
        ParityError, match=r"tokens left are .*, the reference has .* with a cosine .* from the threshold"
    ):
        check_parity(reference, runner, IMAGES, FLOAT, patches=64)


def test_a_number_near_a_threshold_may_differ_but_not_often(tmp_path: Path) -> None:
    runner, reference = built(moved_thresholds(PROGRAM, 0.03), tmp_path), reference_with_margins(assemble(PROGRAM))
    allowed = replace(FLOAT, token_margin=0.04, max_moved=1.0)
    result = check_parity(reference, runner, IMAGES, allowed, patches=64)
    assert sum(p.moved for p in result.paths) > 0
    with pytest.raises(ParityError, match=r"runs the number of tokens differs .* allowed: 0% of the runs"):
        check_parity(reference, runner, IMAGES, replace(allowed, max_moved=0.0), patches=64)


def test_the_first_point_that_differs_is_judged() -> None:
    points = (
        PointMargins(branch=0, counts=(0, 8, 16), margins=np.array([0.2, -0.1]), left=56),
        PointMargins(branch=2, counts=(3,), margins=np.zeros(0), left=53),
    )
    assert first_moved(points, 64, np.array([56, 53])) is None
    assert first_moved(points, 64, np.array([48, 45])) == (0, 0.1)
    assert first_moved(points, 64, np.array([64, 61])) == (0, 0.2)
    assert first_moved(points, 64, np.array([60, 57])) == (0, np.inf)  # 4 pairs are none of its numbers
    assert first_moved(points, 64, np.array([56, 52])) == (2, np.inf)
    with pytest.raises(ParityError, match="1 numbers of tokens were given, expected 2"):
        first_moved(points, 64, np.array([56]))


@pytest.mark.parametrize("program", [PROGRAM, GATED], ids=["plain", "gated"])
def test_macs_of_kernels_are_those_of_the_tokens(program: Program, tmp_path: Path) -> None:
    built(program, tmp_path)
    efforts = (np.inf, -np.inf, 0.0, 0.3)

    def kernels(image: np.ndarray, effort: float) -> tuple[Mapping[str, int], np.ndarray, np.ndarray]:
        return kernel_macs(tmp_path, image, effort)

    result = check_token_macs(program.spec, kernels, IMAGES[:2], efforts=efforts)
    assert len(result.paths) == 8 and len({p.macs for p in result.paths}) > 2
    assert result.paths[0].tokens == most_left(program.spec) and result.paths[0].macs == total_macs(program.spec)
    assert result.paths[1].tokens == fewest_left(program.spec)
    assert "8 runs are exactly those of their tokens" in result.summary


def test_tokens_that_kernels_do_not_bear_out_are_caught(tmp_path: Path) -> None:
    built(PROGRAM, tmp_path)

    def padded(image: np.ndarray, effort: float) -> tuple[Mapping[str, int], np.ndarray, np.ndarray]:
        """As if all rows were computed and only the count told of fewer."""
        return (*kernel_macs(tmp_path, image, np.inf)[:2], kernel_macs(tmp_path, image, effort)[2])

    with pytest.raises(SkipError, match="rows ran that no token stands for"):
        check_token_macs(PROGRAM.spec, padded, IMAGES[:1], efforts=(-np.inf,))

    def impossible(image: np.ndarray, effort: float) -> tuple[Mapping[str, int], np.ndarray, np.ndarray]:
        return (*kernel_macs(tmp_path, image, effort)[:2], np.array([65, 20, 19], np.int32))

    with pytest.raises(SkipError, match="tokens 65, 20, 19: allowed are"):
        check_token_macs(PROGRAM.spec, impossible, IMAGES[:1], efforts=(0.0,))


def test_use_of_tokens_is_told_by_mean_and_percentiles() -> None:
    tokens = np.array([[64, 61, 60], [56, 48, 47], [37, 20, 19]], np.int32)
    gates = np.ones((3, 8), np.uint8)
    use = token_use(PROGRAM.spec, gates, tokens)
    macs = [run_macs(PROGRAM.spec, opened, left) for opened, left in zip(gates, tokens, strict=True)]
    assert use.images == 3 and use.macs.mean == pytest.approx(np.mean(macs))
    assert (use.macs.low, use.macs.high) == pytest.approx(tuple(np.percentile(macs, (10, 90))))
    assert [(p.after, p.most, p.fewest) for p in use.points] == [
        ("b00_mhsa", 64, 39),
        ("b01_mhsa", 61, 23),
        ("b02_mhsa", 60, 22),
    ]
    assert use.points[0].left.mean == pytest.approx(157 / 3)


def test_an_answer_owns_what_it_holds(tmp_path: Path) -> None:
    runner = built(PROGRAM, tmp_path)
    first = runner.answer(IMAGES[:1])
    assert isinstance(first, Answer) and all(output.base is None for output in first)
    logits, gates = runner.run(IMAGES[:1])
    assert np.array_equal(logits, first.logits) and np.array_equal(gates, first.gates)
