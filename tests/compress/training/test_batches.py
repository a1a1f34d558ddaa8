"""A step sees the same images and the same augmentation whoever reads them: any rank, any worker, after any resume."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from edgevit.compress.training.batches import Batches, _posterize, derive_seed, evaluation
from edgevit.compress.training.recipe import Augment
from edgevit.errors import ImagesError, TrainingError
from edgevit.frontends.timm_import import timm
from edgevit.images.labelled import LabelledSet, open_labelled
from tests.pictures import SPEC, class_folders, npz, packed, picture_bytes

EVERYTHING = Augment(scale_min=0.3, color_jitter=0.4, erase=0.5)
Got = list[tuple[Tensor, Tensor]]


@pytest.fixture
def data(tmp_path: Path) -> LabelledSet:
    return open_labelled(npz(tmp_path / "set.npz", [picture_bytes(i, (9, 9)) for i in range(26)]))


def batches(data: LabelledSet, **changed: object) -> Batches:
    settings: dict[str, object] = {"batch": 8, "seed": 3, "augment": EVERYTHING} | changed
    return Batches(data, SPEC, **settings)  # type: ignore[arg-type]


def same(first: Got, second: Got) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def joined(parts: tuple[tuple[Tensor, Tensor], ...]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def break_image(source: Path, which: int) -> None:
    """Overwrite the start of the PNG of one image, wherever in `source` it is stored plainly."""
    raw = picture_bytes(which)
    content = source.read_bytes()
    assert content.count(raw) == 1
    source.write_bytes(content.replace(raw, b"damaged!" + raw[8:]))


def test_shapes_types_and_what_is_dropped(data: LabelledSet) -> None:
    source = batches(data)
    got = list(source.epoch(0))
    assert source.steps == len(got) == 3
    for images, labels in got:
        assert (images.dtype, images.shape) == (torch.float32, (8, 3, 16, 16))
        assert (labels.dtype, labels.shape) == (torch.int64, (8,))


@given(st.integers(-5, 2**70), st.integers(0, 1000))
def test_the_order_is_a_permutation_of_its_own_for_every_epoch(seed: int, epoch: int) -> None:
    source = Batches(SET_OF_SIZES, SPEC, batch=40, seed=seed, augment=Augment())
    order = source.order(epoch)
    assert sorted(order) == list(range(40))
    assert not np.array_equal(order, source.order(epoch + 1))
    other = Batches(SET_OF_SIZES, SPEC, batch=40, seed=seed + 1, augment=Augment())
    assert not np.array_equal(order, other.order(epoch))


def test_labels_belong_to_their_images(data: LabelledSet) -> None:
    plain = batches(data, augment=Augment(scale_min=1.0, hflip=0.0))
    images, labels = joined(tuple(plain.epoch(5)))
    order = plain.order(5)[:24]
    assert data.labels is not None
    assert labels.tolist() == data.labels[order].tolist()
    transform = timm.data.create_transform(
        (3, 16, 16), is_training=True, scale=(1, 1), hflip=0, color_jitter=None, interpolation="bicubic",
        mean=SPEC.mean, std=SPEC.std,
    )  # fmt: skip
    for row, index in enumerate(order):
        random.seed(derive_seed(3, 5, int(index)))
        assert torch.equal(images[row], transform(data.picture(int(index))))


@pytest.mark.parametrize("auto_augment", ["", "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_augmentation_is_timms(data: LabelledSet, auto_augment: str, size: tuple[int, int]) -> None:
    spec = replace(SPEC, height=size[0], width=size[1])
    augment = Augment(color_jitter=0.4, auto_augment=auto_augment)
    source = Batches(data, spec, batch=26, seed=1, augment=augment)
    images, _ = next(source.epoch(2))
    transform = timm.data.create_transform(
        (3, *size), is_training=True, scale=(0.6, 1), hflip=0.5, color_jitter=0.4, interpolation="bicubic",
        auto_augment=auto_augment or None, mean=SPEC.mean, std=SPEC.std,
    )  # fmt: skip
    for row, index in enumerate(source.order(2)):
        seed = derive_seed(1, 2, int(index))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        assert torch.equal(images[row], transform(data.picture(int(index))))


@pytest.mark.parametrize("bits", range(9))
def test_posterizing_is_pillows_and_takes_0_bits(bits: int) -> None:
    from PIL import ImageOps

    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    expected = ImageOps.posterize(picture, bits) if bits else Image.new("RGB", (8, 8))
    assert _posterize(picture, bits, fillcolor=(0, 0, 0)).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "auto_augment", ["rand-m10-mstd1-inc1", "rand-m10-mstd2", "augmix-m10-mstd1", "v0", "originalr"]
)
def test_no_draw_of_a_policy_fails(auto_augment: str) -> None:
    source = Batches(SET_OF_SIZES, SPEC, batch=40, seed=0, augment=Augment(auto_augment=auto_augment))
    for epoch in range(15):
        next(source.epoch(epoch))


def test_erasing_sets_a_rectangle_to_the_mean(data: LabelledSet) -> None:
    plain, _ = next(batches(data, augment=Augment()).epoch(0))
    erased, _ = next(batches(data, augment=Augment(erase=1.0)).epoch(0))
    changed = erased != plain
    assert changed.flatten(1).any(dim=1).all()
    assert (erased[changed] == 0).all()


def test_the_augmentation_varies_with_epoch_and_seed_and_repeats_otherwise(data: LabelledSet) -> None:
    def of_image(seed: int, epoch: int) -> Tensor:
        source = batches(data, seed=seed, batch=26)
        return next(source.epoch(epoch))[0][source.order(epoch).argsort()]

    first = of_image(3, 0)
    assert torch.equal(first, of_image(3, 0))
    for other in (of_image(3, 1), of_image(4, 0)):
        assert (first != other).flatten(1).any(dim=1).sum() > 20


def test_a_number_of_views_is_met_in_turns(data: LabelledSet) -> None:
    source, endless = batches(data, views=2), batches(data)
    for epoch, same in ((0, 0), (1, 1), (2, 0), (5, 1)):
        met = list(source.epoch(epoch))
        for (images, labels), (others, named) in zip(met, endless.epoch(same), strict=True):
            assert torch.equal(images, others) and torch.equal(labels, named)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_slices_make_the_whole_batch(data: LabelledSet, world: int) -> None:
    whole = list(batches(data).epoch(1))
    slices = [batches(data, rank=r, world=world).epoch(1) for r in range(world)]
    assert same(whole, [joined(parts) for parts in zip(*slices, strict=True)])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resume_sees_the_tail_of_the_epoch(data: LabelledSet, workers: int) -> None:
    whole = list(batches(data).epoch(4))
    for start in range(4):
        assert same(whole[start:], list(batches(data, workers=workers).epoch(4, start)))


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "npz"])
def test_workers_change_nothing(tmp_path: Path, kind: str) -> None:
    folder = class_folders(tmp_path / "set", each=8)
    if kind == "npz":
        data = open_labelled(npz(tmp_path / "set.npz", [picture_bytes(i) for i in range(24)]))
    else:
        data = open_labelled(folder if kind == "folder" else packed(folder, kind))
    sources = [batches(data, workers=w, batch=4, augment=replace(EVERYTHING, auto_augment="augmix")) for w in (0, 2)]
    assert same(*(list(source.epoch(0)) for source in sources))


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_generators_of_training_alone(data: LabelledSet, workers: int) -> None:
    def drawn(read: bool) -> tuple[float, float, float]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        for _ in batches(data, workers=workers).epoch(0) if read else ():
            pass
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert drawn(True) == drawn(False)


def test_the_generators_are_restored_between_the_steps(data: LabelledSet) -> None:
    steps = batches(data).epoch(0)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    next(steps)
    first = torch.rand(1)
    next(steps)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


@pytest.mark.parametrize("kind", ["folder", "tar", "npz"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_readable_image_stands_in_for_a_corrupt_one(tmp_path: Path, kind: str, workers: int) -> None:
    folder = class_folders(tmp_path / "set", each=10)
    names = ["image 19", "image 20"] if kind == "npz" else ["dog/9.png", "eel/0.png"]
    if kind == "npz":
        path = npz(tmp_path / "set.npz", [picture_bytes(i) for i in range(30)], label=np.repeat(np.arange(3), 10))
        with np.load(path) as file:
            arrays = dict(file)
        for index in (19, 20):
            arrays["jpeg"][arrays["offset"][index] : arrays["offset"][index] + 8] = 0
        np.savez(path, **arrays)
    else:
        for file, which in ((folder / "dog" / "9.png", 19), (folder / "eel" / "0.png", 20)):
            break_image(file, which)
        path = folder if kind == "folder" else packed(folder, kind)
    data = open_labelled(path)
    source = batches(data, batch=15, workers=workers, augment=Augment(scale_min=1.0, hflip=0.0))
    images, labels = joined(tuple(source.epoch(0)))
    back = source.order(0).argsort()
    # Both get the place after them, their own augmentation and the label of what they show.
    assert labels[back].tolist() == [0] * 10 + [1] * 9 + [2] * 11
    assert [line.split(":")[0].removeprefix("set/") for line in source.unreadable] == names
    whole = open_labelled(class_folders(tmp_path / "whole", each=10))
    straight = batches(whole, batch=15, augment=Augment(scale_min=1.0, hflip=0.0))
    expected = joined(tuple(straight.epoch(0)))[0][back]
    kept = [i for i in range(30) if i not in (19, 20)]
    assert torch.equal(images[back][kept], expected[kept])


def test_the_last_image_is_replaced_by_the_first(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", each=4)
    break_image(folder / "eel" / "3.png", 11)
    source = batches(open_labelled(folder), batch=12)
    _, labels = next(source.epoch(0))
    assert labels[source.order(0).argsort()].tolist() == [0] * 4 + [1] * 4 + [2] * 3 + [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_corrupt_images_stop_the_epoch_with_their_names(tmp_path: Path, workers: int) -> None:
    folder = class_folders(tmp_path / "set", each=10)
    for which in (3, 4, 5, 6):
        break_image(folder / "cat" / f"{which}.png", which)
    with pytest.raises(ImagesError, match=r"4 of 30 images in .* cannot be read, allowed: 10%(.|\n)*cat/3\.png"):
        list(batches(open_labelled(folder), batch=30, workers=workers).epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_that_became_unreadable_ends_at_once(tmp_path: Path, workers: int) -> None:
    path = packed(class_folders(tmp_path / "set", each=10), "tar")
    data = open_labelled(path)
    path.write_bytes(b"")
    with pytest.raises(ImagesError, match="4 of 30 images"):
        list(batches(data, batch=5, workers=workers).epoch(0))


def test_images_without_labels_have_minus_one(tmp_path: Path) -> None:
    data = open_labelled(npz(tmp_path / "set.npz", [picture_bytes(i) for i in range(8)], label=None))
    _, labels = next(batches(data).epoch(0))
    assert labels.tolist() == [-1] * 8


def test_a_set_smaller_than_a_batch_and_a_batch_that_cannot_be_shared(data: LabelledSet) -> None:
    with pytest.raises(ImagesError, match="got 26 images, a batch takes 27"):
        batches(data, batch=27)
    for batch, world in ((8, 3), (0, 1)):
        with pytest.raises(TrainingError, match=f"a batch of {batch} cannot be shared by {world} processes"):
            batches(data, batch=batch, world=world)


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (Augment(scale_min=0.0, hflip=2.0), "scale_min is 0, allowed: above 0.*hflip is 2, allowed: 0 to 1"),
        (Augment(erase=-0.1), "erase is -0.1"),
        (Augment(color_jitter=float("nan")), "color_jitter is nan"),
        (Augment(auto_augment="strong"), "auto_augment is 'strong', which timm cannot read"),
        (Augment(auto_augment="rand-q9"), "auto_augment is 'rand-q9'"),
    ],
)
def test_settings_out_of_range_are_refused(data: LabelledSet, augment: Augment, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        batches(data, augment=augment)


@pytest.mark.parametrize(("height", "width", "crop"), [(48, 48, 1.0), (48, 48, 0.875), (40, 56, 0.9)])
def test_evaluation_sees_timms_pixels(tmp_path: Path, height: int, width: int, crop: float) -> None:
    shapes = [(32, 32), (60, 90), (75, 50), (48, 48), (51, 200)]
    data = open_labelled(npz(tmp_path / "set.npz", [picture_bytes(i, s) for i, s in enumerate(shapes)]))
    spec = replace(SPEC, height=height, width=width, crop_pct=crop)
    pixels, labels = evaluation(data, spec)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    transform = timm.data.create_transform(
        (3, height, width), crop_pct=crop, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    for index, image in enumerate(pixels):
        assert torch.equal(torch.from_numpy(image.copy()).permute(2, 0, 1) / 255, transform(data.picture(index)))


def test_training_images_are_turned_where_the_models_are(tmp_path: Path) -> None:
    """Images with an orientation are trained on as those that were turned before."""
    exif = Image.Exif()
    exif[0x112] = 6
    marked: list[bytes] = []
    turned: list[bytes] = []
    for index in range(8):
        picture = Image.open(io.BytesIO(picture_bytes(index, (20, 40))))
        for raws, image, options in ((marked, picture, {"exif": exif}), (turned, picture.rotate(-90, expand=True), {})):
            image.save(buffer := io.BytesIO(), "PNG", **options)
            raws.append(buffer.getvalue())
    first, second = (open_labelled(npz(tmp_path / f"{n}.npz", raws)) for n, raws in enumerate((marked, turned)))
    apply = replace(SPEC, orientation="apply")
    settings = {"batch": 8, "seed": 3, "augment": EVERYTHING}
    expected = list(Batches(second, SPEC, **settings).epoch(0))  # type: ignore[arg-type]
    assert same(list(Batches(first, apply, **settings).epoch(0)), expected)  # type: ignore[arg-type]
    assert not same(list(Batches(first, SPEC, **settings).epoch(0)), expected)  # type: ignore[arg-type]


def test_stopping_in_the_middle_of_an_epoch_leaves_no_worker_behind(data: LabelledSet) -> None:
    import multiprocessing

    def some() -> Iterator[tuple[Tensor, Tensor]]:
        return batches(data, batch=4, workers=2).epoch(0)

    steps = some()
    next(steps)
    assert multiprocessing.active_children()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def _blank(index: int) -> Image.Image:
    return Image.new("RGB", (4, 4))


SET_OF_SIZES = LabelledSet(
    source="blank", names=("",) * 40, labels=None, classes=(), splits=(), digest="", pictures=_blank
)
