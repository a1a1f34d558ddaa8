"""Plans whose numbers follow the image, at the mean cost that was asked for."""

from __future__ import annotations

import numpy as np
import torch

from edgevit.compress.tokens.per_image import TOLERANCE, follow_images
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
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
