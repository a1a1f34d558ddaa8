"""Plans whose numbers follow the image, at the mean cost that was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevit.compress.tokens import per_image
from edgevit.compress.tokens.per_image import TOLERANCE, follow_images
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def mixed(program: Program, count: int) -> np.ndarray:
    """Images whose patches are more or less alike."""
    images = tiny_images(program.spec, count).astype(np.int64)
    for index in range(count):
        images[index] = (images[index] * (index + 1) + 128 * (count - 1 - index)) // count
    return images.astype(np.uint8)


def test_the_mean_cost_is_what_was_asked_for() -> None:
    program = tiny_program(depth=6, image=(96, 96), tokens="2:40,4:20")
    images = mixed(program, 24)
    work, budget = batches(program.spec, images), total_macs(program.spec)
    spec = follow_images(program, work, budget)
    assert spec is not None and spec.adaptive
    # An image may lose half of its tokens at every point, so that others may keep more than the fixed plan leaves.
    assert all(p.least == 0 and p.count == spec.patches // 2 for p in spec.merges)
    with torch.no_grad():
        model = Vit(program.with_weights({}, spec)).eval()
        left = np.concatenate([model.answer(batch).tokens.numpy() for batch in work])
    assert all((spec.stem.prefix + left[left < spec.patches]) % 8 == 0)
    costs = [total_macs(spec, left=row) for row in left]
    assert len(set(costs)) > 3
    assert np.mean(costs) <= budget
    assert np.mean(costs) > budget - 5 * TOLERANCE * total_macs(tiny_program(depth=6, image=(96, 96)).spec)


def test_what_half_of_the_tokens_does_not_allow_is_not_found() -> None:
    program = tiny_program(depth=4, image=(64, 64), tokens="1:32")
    images = mixed(program, 4)
    assert follow_images(program, batches(program.spec, images), 0.9 * total_macs(program.spec)) is None


def test_thresholds_are_found_where_points_merge_half_of_many_images_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a pair more that is asked for saves less than those before, as measured on a ViT-Ti at 0.6."""
    program = tiny_program(depth=6, image=(112, 112), tokens="2:64,4:65")
    spec, asked = program.spec, list[float]()
    whole, least = total_macs(tiny_program(depth=6, image=(112, 112)).spec), total_macs(spec, left=(98, 49))
    # Part of what can be saved, over the factor of the fixed plan's pairs.
    factors, saved = (0.0, 1.0, 1.2, 1.5), (0.0, 0.80, 0.81, 0.82)

    def thresholds(*given: Any) -> tuple[ProgramSpec, np.ndarray]:
        asked.append(given[3])
        part = float(np.interp(given[3], factors, saved))
        # Of a thousand images so many merge half at both points, the others nothing.
        left = np.where(np.arange(1000)[:, None] < 1000 * part, (98, 49), (196, 196))
        return given[1], left

    monkeypatch.setattr(per_image, "_thresholds", thresholds)
    nothing = total_macs(spec, left=(196, 196))
    budget = nothing - 0.815 * (nothing - least)
    assert budget < whole
    found = follow_images(program, batches(spec, mixed(program, 2)), budget)
    assert found is not None and 1.3 < asked[-1] < 1.5
