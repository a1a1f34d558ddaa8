"""The curve of one build over effort: dense at one end, as few tokens as may be at the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.effort_curve import EFFORTS, measure, render
from edgevit.images.image_set import ImageSet
from edgevit.program.macs import total_macs
from edgevit.program.tokens import cheapest_left
from edgevit.schema.target import load_target
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def test_a_curve_goes_from_all_tokens_to_as_few_as_may_be(tmp_path: Path) -> None:
    program = tiny_program(depth=4, image=(64, 64), tokens="1:0-32@0.85,2:0-32@0.83")
    dense = tiny_program(depth=4, image=(64, 64))
    images = tiny_images(dense.spec, 4)
    held = ImageSet(images=images, names=tuple("abcd"), source=tmp_path, labels=np.arange(4), unreadable=(), digest="")
    report = measure(program, dense, images, held, load_target("x86-64-onnxruntime"), tmp_path)
    assert [point.effort for point in report.points] == [f"{effort:g}" for effort in EFFORTS]
    most, least = report.points[0], report.points[-1]
    assert most.left == (64.0, 64.0) and least.left == tuple(map(float, cheapest_left(program.spec)))
    whole = total_macs(dense.spec)
    assert most.macs == total_macs(program.spec) / whole > 1.0  # the points themselves cost a little
    assert least.macs == total_macs(program.spec, left=cheapest_left(program.spec)) / whole
    assert most.agreement >= report.dense_agreement - 0.5
    text = render(report)
    assert text.count("\n| ") == 2 + len(EFFORTS) and "| -inf | " in text and "1:0-32@0.85,2:0-32@0.83" in text
