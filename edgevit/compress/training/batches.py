"""Training batches whose order and augmentation are pure functions of (seed, epoch, index).

Nothing is remembered between batches, so neither the number of workers, nor the number of processes, nor a resume
changes what a step of an epoch sees. Augmentation is timm's.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgevit.compress.training.recipe import Augment
from edgevit.errors import ImagesError, TrainingError
from edgevit.frontends.timm_import import timm
from edgevit.images.image_set import UNREADABLE_LIMIT, UnreadableImage, check_unreadable, upright
from edgevit.images.labelled import LabelledSet, prepare_all
from edgevit.program.spec import ImageSpec
from edgevit.torch_form.vit import normalise_pixels

Transform = Callable[[Any], Any]


class Batches:
    """The batches of a training set, for one of `world` processes.

    Args:
        data: what to read; may be without labels.
        image: size, mean, std and interpolation of the network's input.
        batch: images of a step over all processes; the last, smaller batch of an epoch is dropped.
        seed: of order and augmentation.
        augment: how images are varied.
        views: after how many epochs order and augmentation begin again; 0 for never.
        workers: processes that read ahead; 0 reads in this one.
        rank: which of the processes this is.
        world: how many processes share every batch.

    Raises:
        ImagesError: the set is smaller than a batch.
        TrainingError: the batch cannot be shared evenly, or a setting of `augment` is out of range.
    """

    def __init__(
        self,
        data: LabelledSet,
        image: ImageSpec,
        *,
        batch: int,
        seed: int,
        augment: Augment,
        views: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch < 1 or batch % world:
            raise TrainingError(
                f"a batch of {batch} cannot be shared by {world} processes: it is the size over all of them; choose a "
                f"multiple of {world}"
            )
        if len(data) < batch:
            raise ImagesError(
                f"{data.source} is too small: got {len(data)} images, a batch takes {batch}; add images, or choose a "
                f"batch of at most {len(data)}"
            )
        self.steps = len(data) // batch
        self._batch, self._seed, self._workers, self._rank, self._world = batch, seed, workers, rank, world
        self._data, self._views = data, views
        self._reader = _Reader(data, image, seed, *_transforms(augment, image))
        self._unreadable: dict[int, str] = {}

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Return `name: reason` of every image of this process's share that could not be read so far, by index."""
        return tuple(f"{self._data.names[i]}: {reason}" for i, reason in sorted(self._unreadable.items()))

    def order(self, epoch: int) -> np.ndarray:
        """Return the permutation int64 `[n]` in which an epoch goes through the set."""
        return np.random.default_rng(derive_seed(self._seed, epoch)).permutation(len(self._data))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from step `start` on, as this process's contiguous part of each.

        Yields:
            images float32 `[batch / world, 3, height, width]`, normalised, and labels int64 `[batch / world]`, -1 for
            an image without one. An unreadable image is replaced by the next readable one of the set.

        Raises:
            ImagesError: more than 10 % of the set turned out unreadable.
        """
        epoch = epoch % self._views if self._views else epoch
        share = self._batch // self._world
        order = self.order(epoch)
        tasks = []
        for step in range(start, self.steps):
            first = step * self._batch + self._rank * share
            tasks.append((epoch, order[first : first + share]))
        for images, labels, unreadable in self._read(tasks):
            self._unreadable.update(unreadable)
            if unreadable:
                check_unreadable(self._data.source, list(self.unreadable), len(self._data))
            yield images, labels

    def _read(self, tasks: Sequence[tuple[int, np.ndarray]]) -> Iterator[_Read]:
        if not self._workers:
            yield from map(self._reader.__getitem__, tasks)
            return
        # A generator of its own: the loader would otherwise draw from the one that training uses.
        loader: torch.utils.data.DataLoader[_Read] = torch.utils.data.DataLoader(
            self._reader,
            batch_size=None,
            sampler=tasks,
            num_workers=self._workers,
            generator=torch.Generator(),
        )
        yield from loader


def evaluation(data: LabelledSet, image: ImageSpec, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images to test on, as `edgevit.images.labelled.prepare_all` gives them: uint8 and labels."""
    return prepare_all(data, image, limit)


def derive_seed(*parts: int) -> int:
    """Return 64 bits that depend on all of `parts` (such as seed, epoch and index) and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


_Read = tuple[Tensor, Tensor, dict[int, str]]


@dataclass(frozen=True)
class _Reader(torch.utils.data.Dataset[_Read]):
    """(epoch, indices) to a batch and to what was unreadable on the way."""

    data: LabelledSet
    image: ImageSpec
    seed: int
    vary: Transform
    erase: Transform | None

    def __getitem__(self, task: tuple[int, np.ndarray]) -> _Read:
        epoch, indices = task
        unreadable: dict[int, str] = {}
        pixels = np.empty((len(indices), self.image.height, self.image.width, 3), dtype=np.uint8)
        labels = torch.empty(len(indices), dtype=torch.int64)
        with _same_randomness_after():
            for row, index in enumerate(indices.tolist()):
                found = self._readable(index, unreadable)
                if found is None:  # the caller refuses what `unreadable` says
                    break
                picture, labels[row] = found
                _seed_all(derive_seed(self.seed, epoch, index))
                pixels[row] = self.vary(picture)
            images = normalise_pixels(self.image, pixels)
            if self.erase is not None:
                for row, index in enumerate(indices.tolist()):
                    _seed_all(derive_seed(self.seed, epoch, index, 1))
                    images[row] = self.erase(images[row])
        return images, labels, unreadable

    def _readable(self, index: int, unreadable: dict[int, str]) -> tuple[Image.Image, int] | None:
        """Return the image at `index`, or the next readable one; None once too many are not."""
        for step in range(math.floor(UNREADABLE_LIMIT * len(self.data)) + 1):
            place = (index + step) % len(self.data)
            try:
                return upright(self.data.picture(place), self.image), self.data.label(place)
            except UnreadableImage as error:
                unreadable[place] = str(error)
        return None


def _transforms(augment: Augment, image: ImageSpec) -> tuple[Transform, Transform | None]:
    """Return the training transform in two parts: RGB image to varied image, normalised tensor to erased one."""
    faults = [
        f"{name} is {value:g}, allowed: {allowed}"
        for name, value, good, allowed in (
            ("scale_min", augment.scale_min, 0 < augment.scale_min <= 1, "above 0, at most 1"),
            ("hflip", augment.hflip, 0 <= augment.hflip <= 1, "0 to 1"),
            ("color_jitter", augment.color_jitter, 0 <= augment.color_jitter <= 100, "0 to 100"),
            ("erase", augment.erase, 0 <= augment.erase <= 1, "0 to 1"),
        )
        if not good
    ]
    if faults:
        raise TrainingError(f"augmentation: {'; '.join(faults)}")
    operations = timm.data.auto_augment.NAME_TO_OP
    operations.update({name: _posterize for name in operations if name.startswith("Posterize")})
    try:
        crop, colour, final = timm.data.create_transform(
            input_size=(3, image.height, image.width),
            is_training=True,
            scale=(augment.scale_min, 1.0),
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment or None,
            interpolation=image.interpolation,
            mean=image.mean,
            std=image.std,
            re_prob=augment.erase,
            separate=True,
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise TrainingError(
            f"augmentation: auto_augment is {augment.auto_augment!r}, which timm cannot read ({error}); allowed: such "
            "as rand-m9-mstd0.5-inc1, augmix-m3-w3 or original"
        ) from None
    return _Varied(crop, colour), final.transforms[-1] if augment.erase else None


def _posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """Do what timm does, with 0 bits too (a black image): it may draw 0, which Pillow 12 refuses."""
    mask = 256 - 2 ** (8 - min(bits, 8))
    return picture.point([value & mask for value in range(256)] * len(picture.getbands()))


@dataclass(frozen=True)
class _Varied:
    crop: Transform
    colour: Transform

    def __call__(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(self.colour(self.crop(picture)))


def _seed_all(seed: int) -> None:
    """Seed the three generators that timm's and torchvision's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def _same_randomness_after() -> Iterator[None]:
    """Leave the process's generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
