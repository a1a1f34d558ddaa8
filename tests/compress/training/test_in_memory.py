"""Calibration images as batches: all of them in every epoch, mirrored or not, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.compress.training.in_memory import InMemory
from edgevit.torch_form.vit import normalise
from tests.tiny import tiny_images, tiny_spec

SPEC = tiny_spec()


def epoch(source: InMemory, number: int, start: int = 0) -> torch.Tensor:
    return torch.cat([images for images, _ in source.epoch(number, start)])


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (10, [4, 4, 2]), (3, [3])])
def test_an_epoch_is_every_image_once_as_it_is_or_mirrored(count: int, sizes: list[int]) -> None:
    images = tiny_images(SPEC, count)
    source = InMemory(SPEC, images, batch=4, seed=0)
    given = list(source.epoch(0))
    assert source.steps == len(sizes)
    assert [len(x) for x, _ in given] == sizes
    assert all((labels == -1).all() for _, labels in given)
    plain, mirrored = normalise(SPEC, images), normalise(SPEC, images[:, :, ::-1])
    found = set()
    for image in epoch(source, 0):
        found |= {i for i in range(count) if torch.equal(image, plain[i]) or torch.equal(image, mirrored[i])}
    assert found == set(range(count))


def test_about_half_of_the_batches_are_mirrored() -> None:
    images = tiny_images(SPEC, 8)
    before, plain = images.copy(), normalise(SPEC, images)
    source, as_given = InMemory(SPEC, images, batch=4, seed=0), list[bool]()
    for number in range(32):
        for batch, _ in source.epoch(number):
            each = {any(torch.equal(image, other) for other in plain) for image in batch}
            assert len(each) == 1
            as_given += each
    assert 16 < sum(as_given) < 48
    assert np.array_equal(images, before)


def test_order_and_mirroring_depend_on_seed_and_epoch_alone() -> None:
    images = tiny_images(SPEC, 12)
    one, again, other = (InMemory(SPEC, images, batch=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(epoch(one, 3), epoch(again, 3))
    assert not torch.equal(epoch(one, 3), epoch(one, 4))
    assert not torch.equal(epoch(one, 3), epoch(other, 3))


def test_an_epoch_goes_on_from_any_step() -> None:
    source = InMemory(SPEC, tiny_images(SPEC, 10), batch=4, seed=0)
    assert torch.equal(epoch(source, 1, start=1), epoch(source, 1)[4:])
