"""What benchmarks/int16_products.py tells: the builds' distance from the float model, and the table made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.int16_products import Report, measure, render
from edgevit.images.image_set import ImageSet
from edgevit.measure.environment import environment, snapshot


def rows() -> Report:
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((8, 5)).astype(np.float32)
    # An image's first byte is its number.
    images = np.zeros((8, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(8)
    labels = plain.argmax(axis=1)
    other = plain + np.float32(0.25)
    other[0] = -other[0]
    names = tuple(map(str, range(8)))
    evaluation = ImageSet(images=images, labels=labels, names=names, unreadable=(), digest="", source=Path("images"))
    found = measure(
        "deit_tiny",
        {2: lambda image: plain[int(image[0, 0, 0, 0])][None], 4: lambda image: other[int(image[0, 0, 0, 0])][None]},
        plain,
        evaluation,
        6,
    )
    machine = environment(
        snapshot(), snapshot(), runtime="tvm", runtime_version="tvm 1", inference_precision="f32", threads=1
    )
    return Report(command="c", machine=machine, target="x86-64-v3-tvm", images=8, calibration=3, rounds=6, rows=found)


def test_each_build_is_held_against_the_float_model() -> None:
    two, four = rows().rows
    assert (two.rms, two.drop.value, two.agreement.value) == (0.0, 0.0, 1.0)
    assert two.kl == pytest.approx(0.0, abs=1e-6)
    assert four.agreement.value == four.top1.value == 7 / 8 and four.drop.value == 1 / 8
    assert four.rms > 0.25 and four.kl > 0
    assert two.to_two.value == 1.0 and four.cpu_ms >= 0


def test_the_table_says_what_was_measured() -> None:
    report = rows()
    (row, _) = report.rows
    text = render(replace(report, rows=(replace(row, rms=0.12345, cpu_ms=52.5),)))
    assert "| deit_tiny | 2 | 0.1235 | " in text and "| 52.50 | 1.000 (1.000 to 1.000) |" in text
    assert "8 images" in text and "3 images" in text and "x86-64-v3-tvm" in text
