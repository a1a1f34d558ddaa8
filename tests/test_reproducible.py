"""Building twice from the same inputs gives the same bytes, whatever was timed in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit import pipeline
from edgevit.build import verify_build
from edgevit.images.image_set import ImageSet
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target, load_target
from edgevit.util.strict_json import from_data, to_data
from edgevit.verify.skip import SkipTimeResult
from tests.tiny import tiny_images, tiny_program

RECIPE = Recipe(
    model="tiny",
    weights_sha256="0" * 64,
    prune=0.0,
    gate=1.0,
    seed=0,
    calibration="random",
    calibration_images=8,
    calibration_sha256="0" * 64,
)


@pytest.mark.parametrize("name", ["x86-64-avx2-onnxruntime", "x86-64-openvino"])
def test_equal_inputs_make_equal_bundles(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A random model's logits are near ties: what int8 costs it says nothing, so its limits are opened.
    faults: list[str] = []
    lenient = to_data(load_target(name)) | {"min_agreement": 0.0, "max_top1_drop": 1.0}
    target = from_data(Target, lenient, faults)
    assert target is not None, faults
    program = tiny_program(gated=True, skip=True, depth=2)
    images = ImageSet(
        images=tiny_images(program.spec, 8),
        labels=np.arange(8, dtype=np.int64),
        names=tuple(f"{i}.png" for i in range(8)),
        unreadable=(),
        digest="0" * 64,
        source=Path("random"),
    )
    archives = []
    # What a closed gate of so small a model saves drowns in what any run takes: nothing is timed.
    monkeypatch.setattr(verify_build, "check_skip_time", _timed)
    for where in ("one", "two"):
        built = pipeline.build(program, target, images, tmp_path / where, recipe=RECIPE, evaluation=images)
        archives.append(built.archive)
        # As on a machine that is busy during the second build: other times, and more runs before they are believed.
        monkeypatch.setattr(verify_build, "check_skip_time", _disturbed)
    files = [
        {p.relative_to(tmp_path / where): p.read_bytes() for p in (tmp_path / where).rglob("*") if p.is_file()}
        for where in ("one", "two")
    ]
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []
    assert files[0].keys() == files[1].keys()
    assert archives[0].read_bytes() == archives[1].read_bytes()


def _timed(*args: Any, **options: Any) -> SkipTimeResult:
    return SkipTimeResult(all_open_ms=2.0, all_skipped_ms=1.0, ratio=0.5, expected=0.4, limit=0.6, runs=15)


def _disturbed(*args: Any, **options: Any) -> SkipTimeResult:
    result = _timed(*args, **options)
    return replace(result, all_open_ms=2 * result.all_open_ms, ratio=result.ratio / 2, runs=3 * result.runs)
