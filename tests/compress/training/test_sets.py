"""torchvision's data sets, from files on disk; other sources go to the labelled sets."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.compress.training import sets
from edgevit.compress.training.batches import Batches
from edgevit.compress.training.recipe import Augment
from edgevit.compress.training.sets import open_data
from edgevit.errors import ImagesError
from edgevit.frontends.timm_import import declare_ops
from edgevit.images.image_set import UnreadableImage
from edgevit.images.labelled import LabelledSet, check_labels
from tests.pictures import SPEC, class_folders

declare_ops()
from torchvision.datasets import VisionDataset  # noqa: E402


def labels_of(data: LabelledSet) -> list[int]:
    assert data.labels is not None
    return [int(label) for label in data.labels]


def digits(root: Path) -> Path:
    """MNIST's own file format: 6 training and 4 test images of 28 x 28."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) + (0 if part == "train" else 5)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"".join(n.to_bytes(4, "big") for n in (0x801, count)) + labels.tobytes()
        )
    return root


def test_a_path_is_a_labelled_set(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    for source in (folder, str(folder)):
        assert open_data(source).classes == ("cat", "dog", "eel")


def test_a_set_with_a_train_flag(tmp_path: Path) -> None:
    text = f"torchvision:MNIST:{digits(tmp_path)}"
    train = open_data(text, "train")
    assert labels_of(train) == labels_of(open_data(text)) == [0, 1, 2, 3, 4, 5]
    assert labels_of(open_data(text, "test")) == labels_of(open_data(text, "val")) == [5, 6, 7, 8]
    assert (train.picture(2).mode, train.picture(2).size) == ("RGB", (28, 28))
    assert train.classes[3].startswith("3")
    assert train.splits == ("train", "val")
    with pytest.raises(ImagesError, match="no split 'dev'; it has: train, test"):
        open_data(text, "dev")
    assert pickle.loads(pickle.dumps(train)).picture(1).tobytes() == train.picture(1).tobytes()
    images, _ = next(Batches(train, SPEC, batch=6, seed=0, augment=Augment(), workers=1).epoch(0))
    assert images.shape == (6, 3, 16, 16)


def test_a_set_with_named_splits_and_one_without(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        class_folders(tmp_path / "country211" / name, each={"train": 3, "valid": 2, "test": 1}[name])
    text = f"torchvision:Country211:{tmp_path}"
    assert [len(open_data(text, split)) for split in ("train", "val", "test")] == [9, 6, 3]
    assert open_data(text, "validation").classes == ("cat", "dog", "eel")
    with pytest.raises(ImagesError, match="'dev'"):
        open_data(text, "dev")
    class_folders(tmp_path / "eurosat" / "2750")
    text = f"torchvision:EuroSAT:{tmp_path}"
    data = open_data(text, "train")
    assert labels_of(data) == [0] * 4 + [1] * 4 + [2] * 4
    check_labels(data, 3)
    assert not data.splits
    with pytest.raises(ImagesError, match="knows no splits"):
        open_data(text, "val")


def test_torchvisions_folders_are_read_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey of 16 bits is scaled, and no EPS that is called .png reaches Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    folder = class_folders(tmp_path / "set", ("a", "b"), 2)
    Image.fromarray(np.full((9, 9), 25700, np.uint16)).save(folder / "a" / "0.png")
    Image.new("RGB", (9, 9)).save(folder / "a" / "1.png", "EPS")
    data = open_data(f"torchvision:ImageFolder:{folder}")
    assert data.picture(0).getpixel((0, 0)) == (100, 100, 100)
    with pytest.raises(UnreadableImage, match="not an image of these formats"):
        data.picture(1)
    assert EpsImagePlugin.gs_binary is False, "for sets that open files themselves"


def test_a_damaged_image_is_unreadable_and_keeps_its_label(tmp_path: Path) -> None:
    class_folders(tmp_path / "eurosat" / "2750")
    (tmp_path / "eurosat" / "2750" / "cat" / "0.png").write_bytes(b"no image")
    data = open_data(f"torchvision:EuroSAT:{tmp_path}")
    assert labels_of(data)[0] == 0
    with pytest.raises(UnreadableImage):
        data.picture(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torchvision:CIFAR01:{}", "no image data set 'CIFAR01'; the nearest: CIFAR10"),
        ("torchvision:VisionDataset:{}", "no image data set 'VisionDataset'"),
        ("torchvision:FakeData:{}", "no image data set 'FakeData'"),
        ("torchvision:CIFAR10:{}/none", "does not exist"),
        ("torchvision:CIFAR10", "got the folder ''"),
        ("torchvision:CIFAR10:{}", "nothing is downloaded"),
        ("torchvision:SEMEION:{}", "nothing is downloaded"),
        ("torchvision:EuroSAT:{}", "nothing is downloaded"),
    ],
)
def test_what_cannot_be_opened_is_one_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ImagesError, match=said) as error:
        open_data(text.format(tmp_path))
    assert "download=True" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing was written"


class Made(VisionDataset):  # type: ignore[misc]
    """A set whose own list of labels may be wrong."""

    def __init__(self, root: str, item: Callable[[int], Any], targets: list[int] | None) -> None:
        super().__init__(root)
        self.item = item
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


@pytest.mark.parametrize("targets", [None, [9, 9, 9, 9, 9], [0, 1], [3, 2, 1, 0, 0]])
def test_labels_are_what_the_items_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[int] | None
) -> None:
    def made(root: str) -> Made:
        return Made(root, lambda i: (Image.new("L", (4, 4)), i), targets)

    monkeypatch.setattr(sets, "_known", lambda: {"Made": made})
    assert labels_of(open_data(f"torchvision:Made:{tmp_path}")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("item", [(0, 1), (Image.new("L", (4, 4)), (1, 2)), (Image.new("L", (4, 4)), 0, 1), 3])
def test_a_set_that_is_not_of_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: Any) -> None:
    monkeypatch.setattr(sets, "_known", lambda: {"Made": lambda root: Made(root, lambda _: item, None)})
    with pytest.raises(ImagesError, match="images with one class each"):
        open_data(f"torchvision:Made:{tmp_path}")
