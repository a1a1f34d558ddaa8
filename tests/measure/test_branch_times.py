"""Branches are timed in every model that a build can make, whatever its inputs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.backends import onnx_backend
from edgevit.measure.branch_times import inputs_of, times_by_branch
from edgevit.onnx_form.assemble import assemble
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from tests.tiny import tiny_images, tiny_program

FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml"}


@pytest.mark.parametrize("tokens", ["", "1:0-27@0.85"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("runtime", sorted(FILES))
def test_what_effort_steers_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, gated: bool, tokens: str
) -> None:
    asked = []

    def recorded(*arguments: Any) -> dict[str, Any]:
        asked.append(inputs_of(*arguments))
        return asked[-1]

    monkeypatch.setattr(f"edgevit.backends.{runtime}.branch_times.inputs_of", recorded)
    program = tiny_program(gated=gated, depth=2, image=(64, 64), tokens=tokens)
    onnx_backend(runtime).compile(assemble(program), tmp_path)
    names = [branch.name for branch in program.spec.branches]
    told = onnx_backend(runtime).trace_branches(
        tmp_path / FILES[runtime],
        tiny_images(program.spec, 2),
        branches=names,
        gated=names if gated else [],
        threads=1,
        precision="f32",
        weight_bits=32,
    )
    efforts = {float(feeds["effort"]) for feeds in asked if "effort" in feeds}
    most, least = (float(np.float32(effort)) for effort in (EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED))
    assert efforts == ({most, least} if gated else {most} if tokens else set())
    assert set(told.open_ms) == set(names) and set(told.skipped_ms) <= set(names if gated else ())


def test_points_where_tokens_merge_are_of_no_branch() -> None:
    rows = [("a/fc", 1.0), ("merge.a/scores", 8.0), ("fused", 2.0), ("b/qkv", 4.0), ("tokens/rows", 16.0)]
    assert times_by_branch(rows, ["a", "b"], []) == {"a": 1.0, "b": 6.0}
