"""Times of merged tokens: what a row says of a build, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.backends import Case
from benchmarks.timing import Times
from benchmarks.token_times import Row, mean_ratio, rows_of, table
from edgevit.images.image_set import ImageSet
from edgevit.program.macs import total_macs
from edgevit.schema.target import load_target
from tests.tiny import tiny_images, tiny_program


def case(key: str, folder: Path, tokens: str) -> Case:
    program = tiny_program(depth=4, image=(64, 64), dim=64, hidden=256, tokens=tokens)
    images = ImageSet(
        images=tiny_images(program.spec, 8),
        labels=None,
        names=tuple(map(str, range(8))),
        unreadable=(),
        digest="0" * 64,
        source=folder,
    )
    (folder / key).mkdir()
    return Case(key=key, program=program, calibration=images, evaluation=images, folder=folder / key)


def test_a_row_says_what_a_build_saves(tmp_path: Path) -> None:
    cases = [case("dense", tmp_path, ""), case("fixed", tmp_path, "2:16,3:12"), case("follows", tmp_path, "2:0-30@0.9")]
    fixed, follows = rows_of(load_target("x86-64-onnxruntime"), cases, 5)
    assert (fixed.plan, follows.plan) == ("2:16,3:12", "2:0-30@0.9")
    np.testing.assert_allclose(fixed.macs, total_macs(cases[1].program.spec) / total_macs(cases[0].program.spec))
    assert fixed.macs < follows.macs <= 1 and fixed.activations < 0.85
    assert fixed.low <= fixed.time <= fixed.high and fixed.rounds == 5


def test_the_table_says_how_far_time_lies_above_macs() -> None:
    row = Row(
        model="fixed",
        target="x86-64-openvino",
        plan="5:53,7:64",
        macs=0.695,
        time=0.745,
        low=0.74,
        high=0.75,
        activations=0.71,
        dense_activations_bytes=1_360_000,
        rounds=100,
        load=1.5,
    )
    assert "| 0.695 | 0.745 (0.740 to 0.750) | 5.0 points | 0.71 of 1.36 MB | 100 | 1.5 |" in table([row])


def test_time_is_the_mean_over_images_as_macs_are() -> None:
    """Of ten images nine take half, one as long as before: 0.55, and not the median image's 0.5."""
    dense = Times(cpu_ms=(10.0,) * 50, wall_ms=(10.0,) * 50)
    spent = tuple(10.0 if index % 10 == 0 else 5.0 + 0.01 * (index % 3) for index in range(50))
    found = mean_ratio(Times(cpu_ms=spent, wall_ms=spent), dense, 10)
    assert abs(found.value - 0.551) < 2e-3 and found.low <= found.value <= found.high < 0.56
