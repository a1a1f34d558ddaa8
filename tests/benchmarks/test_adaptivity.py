from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.adaptivity import BINS, Row, asked_once, kept, table, write
from edgevit.compress.adaptivity import Adaptivity
from tests.tiny import tiny_program

FOUND = Adaptivity(
    images=500,
    macs=0.5,
    deviation=0.1,
    percentiles=(0.3, 0.4, 0.5, 0.62, 0.9),
    gates=20,
    varying=12,
    points=2,
    frozen_macs=0.501,
    top1=0.98,
    frozen_top1=0.962,
    drift=0.05,
    frozen_drift=0.11,
)
ROW = Row(name="both", source="photos", original_top1=0.986, histogram=(0,) * 20 + (500,) + (0,) * 19, found=FOUND)


def test_the_table_says_what_freezing_loses() -> None:
    unlabelled = replace(FOUND, top1=None, frozen_top1=None, drift=None, frozen_drift=None)
    text = table([ROW, replace(ROW, name="silent", original_top1=None, found=unlabelled)])
    said = "| 500 of photos | 0.500 (0.501 frozen) | 0.400 to 0.620 | 0.300, 0.900 | 12 of 20 | 2 |"
    assert f"| both {said} 98.6 | 98.0 | 96.2 | -1.8 | 0.050 | 0.110 |" in text
    assert f"| silent {said} - | - | - | - | - | - |" in text


def test_rows_add_up_in_one_folder(tmp_path: Path) -> None:
    assert kept(tmp_path) == [] and len(ROW.histogram) == BINS
    write([ROW], tmp_path)
    assert kept(tmp_path) == [ROW]
    assert (tmp_path / "adaptivity.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "adaptivity.md").read_text(encoding="utf-8") == table([ROW])


def test_the_original_is_asked_once_for_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, rng = asked_once(tiny_program()), np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    first, other = ask(images), ask(255 - images)
    monkeypatch.setattr("benchmarks.adaptivity.answers", None)
    assert np.array_equal(ask(images.copy()), first) and not np.array_equal(first, other)
