"""Images that can calibrate nothing are refused, doubtful ones are named, and those that judge calibrate nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import ImagesError
from edgevit.images.calibration_checks import (
    check_calibration,
    image_digests,
    shared_images,
    split_calibration,
)
from edgevit.images.image_set import ImageSet, load_images
from edgevit.program.pixels import pixels_digest
from edgevit.util.resources import shipped
from tests.tiny import tiny_images, tiny_spec

SPEC = tiny_spec().image


def image_set(pixels: np.ndarray) -> ImageSet:
    names = tuple(f"{i}.png" for i in range(len(pixels)))
    digest = pixels_digest(pixels)
    return ImageSet(images=pixels, labels=None, names=names, unreadable=(), digest=digest, source=Path("photos"))


def photos(count: int, seed: int = 0) -> np.ndarray:
    return tiny_images(tiny_spec(), count, seed)


def shades(count: int) -> np.ndarray:
    return np.repeat(np.linspace(0, 255, count).astype(np.uint8), 32 * 32 * 3).reshape(count, 32, 32, 3)


def dim(count: int, span: int) -> np.ndarray:
    return (photos(count).astype(np.float64) * span / 255 + 100).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((8, 32, 32, 3), np.uint8), "of its 8 images each is one flat colour"),
        (shades(20), "of its 20 images each is one flat colour"),
        (photos(1), "it holds 1 image"),
        (np.repeat(photos(1), 16, axis=0), "its 16 images are all equal"),
        (dim(30, 10), r"its pixels lie within 10\d to 1\d\d of 0 to 255"),
    ],
)
def test_images_that_exercise_no_range_are_refused(pixels: np.ndarray, said: str) -> None:
    with pytest.raises(ImagesError, match=f"photos cannot calibrate a model: {said}.*Give 100 to 300"):
        check_calibration(image_set(pixels), SPEC)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (photos(15), "15 different images are few"),
        (np.concatenate([photos(20), photos(20)]), "20 of 40 calibration images are copies"),
        (np.concatenate([photos(20), shades(3)]), "3 of 23 calibration images are one flat colour"),
        (dim(20, 50), "use only 10"),
        (photos(20) // 8, "much darker than what the model was trained on"),
        (255 - photos(20) // 4, "much brighter than what the model was trained on"),
        (np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8), "look like noise"),
    ],
)
def test_doubtful_images_are_named(pixels: np.ndarray, said: str) -> None:
    assert any(said in doubt for doubt in check_calibration(image_set(pixels), SPEC))


def test_good_images_raise_no_doubt() -> None:
    assert check_calibration(image_set(photos(16)), SPEC) == ()


def test_brightness_is_not_judged_by_a_mean_that_is_not_of_photographs() -> None:
    assert check_calibration(image_set(photos(20)), replace(SPEC, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))) == ()


def test_the_shipped_photographs_raise_no_doubt() -> None:
    image = replace(SPEC, height=224, width=224)
    used, held = split_calibration(load_images(shipped("calibration") / "shipped.toml", image))
    assert check_calibration(used, image) == ()
    assert held is not None and (len(used), len(held)) == (29, 8)


@pytest.mark.parametrize("name", ["imagenet-sample-1000.tar", "imagenette-3000.tar", "cifar10-train.npz"])
@pytest.mark.parametrize("mean", [0.5, 0.45])
def test_real_images_raise_no_doubt(data: Path, name: str, mean: float) -> None:
    image = replace(SPEC, height=64, width=64, mean=(mean, mean, mean))
    assert check_calibration(load_images(data / name, image, limit=32), image) == ()


@pytest.mark.parametrize(("count", "held"), [(9, 0), (10, 3), (15, 5), (24, 8), (37, 8), (40, 8), (60, 12), (300, 60)])
def test_a_fifth_is_held_out_but_eight_where_that_is_no_more_than_a_third(count: int, held: int) -> None:
    images = image_set(np.arange(count * 12, dtype=np.uint16).view(np.uint8).reshape(count, 2, 4, 3))
    used, judged = split_calibration(images)
    assert (len(used), len(judged) if judged else 0) == (count - held, held)
    assert not shared_images(used, judged or replace(used, images=used.images[:0]))
    assert sorted([*used.names, *(judged.names if judged else ())]) == sorted(images.names)


def test_the_same_images_are_held_out_every_time_evenly_spread() -> None:
    one, two = (split_calibration(image_set(photos(40)))[1] for _ in range(2))
    assert one is not None and two is not None and one.digest == two.digest == pixels_digest(one.images)
    assert one.names == tuple(f"{i}.png" for i in (2, 7, 12, 17, 22, 27, 32, 37))


def test_copies_of_a_held_out_image_calibrate_nothing() -> None:
    images = image_set(np.concatenate([photos(20), photos(20)]))
    used, judged = split_calibration(images)
    assert judged is not None and not shared_images(used, judged)
    assert (len(judged), len(set(image_digests(judged.images))), len(used)) == (6, 6, 28)


def test_images_that_both_sets_have_are_counted() -> None:
    assert shared_images(image_set(photos(5)), image_set(photos(9, seed=1))) == 0
    assert shared_images(image_set(photos(9)[:5]), image_set(photos(9))) == 5
