"""Where training data comes from: a path (see `edgevit.images.labelled`), or a data set of torchvision already on disk.

`torchvision:CIFAR10:/path` is `torchvision.datasets.CIFAR10("/path")`. Nothing is downloaded. torchvision checks the
MD5 sums of the files that it unpickles (CIFAR's).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from edgevit.errors import ImagesError
from edgevit.frontends.timm_import import declare_ops
from edgevit.images.image_set import UnreadableImage, decode
from edgevit.images.labelled import LabelledSet, labelled_set, open_labelled
from edgevit.images.match import UNLABELLED
from edgevit.images.sources import split_name
from edgevit.util.limits import IMAGE_BYTES, LimitError, read_regular
from edgevit.util.progress import track

PREFIX = "torchvision:"
# What torchvision's sets call a split, best first; most have no validation split, their test split stands in.
CALLED = {
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid", "test"),
    "test": ("test", "val", "valid"),
}
TARGETS = ("targets", "labels", "_labels", "y")
# What sets raise for an image that cannot be decoded; h5py and Pillow raise the odd ones.
DAMAGE = (OSError, ValueError, SyntaxError, IndexError, EOFError, KeyError, RuntimeError)


def open_data(source: str | Path, split: str | None = None) -> LabelledSet:
    """Open `torchvision:NAME:FOLDER`, or anything that `edgevit.images.labelled.open_labelled` reads.

    For torchvision's sets `split` is train where None is given, and val gives the test split of sets that have no
    other; a set without splits is one training split.

    Raises:
        ImagesError: unknown name (the nearest are offered), folder or files missing, no such split, or a set that is
            not of images with one class each.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return open_labelled(Path(source), split=split)
    name, _, folder = text.removeprefix(PREFIX).partition(":")
    known = _known()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.4) or sorted(known)
        raise ImagesError(f"torchvision has no image data set {name!r}; the nearest: {', '.join(near)}")
    if not folder or not Path(folder).is_dir():
        raise ImagesError(
            f"{text}: got the folder {folder!r}, which does not exist. Give {PREFIX}{name}:FOLDER where FOLDER is what "
            f"torchvision.datasets.{name} calls root; nothing is downloaded"
        )
    EpsImagePlugin.gs_binary = False  # sets that load images themselves open an EPS too, whatever it is called
    parameters = inspect.signature(known[name]).parameters
    data = _construct(text, known[name], folder, _arguments(text, parameters, split))
    if len(data) == 0:
        raise ImagesError(f"{text} is empty")
    labels = _labels(text, data)
    return labelled_set(
        source=text,
        names=tuple(f"image {index}" for index in range(len(data))),
        labels=labels,
        pictures=_Pictures(data),
        classes=_classes(data),
        splits=("train", "val") if {"train", "split"} & parameters.keys() else (),
    )


def _known() -> dict[str, Any]:
    """Return the data sets that need no more than a folder, by name."""
    declare_ops()
    from torchvision import datasets

    found = {name: getattr(datasets, name) for name in datasets.__all__ if name != "VisionDataset"}
    return {
        name: kind
        for name, kind in found.items()
        if inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset) and _needs_only_root(kind)
    }


def _needs_only_root(kind: type) -> bool:
    needed = [
        p.name
        for p in inspect.signature(kind).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return needed == ["root"]


def _arguments(text: str, parameters: Any, split: str | None) -> Iterator[dict[str, Any]]:
    """Return what to construct the set with, best first."""
    wanted = split_name(split or "train")
    fixed: dict[str, Any] = {"download": False, "loader": _load}
    fixed = {name: value for name, value in fixed.items() if name in parameters}
    if "train" in parameters:
        if wanted not in CALLED:
            raise ImagesError(f"{text} has no split {split!r}; it has: train, test")
        yield fixed | {"train": wanted == "train"}
    elif "split" in parameters:
        for name in CALLED.get(wanted, (wanted,)):
            yield fixed | {"split": name}
    elif wanted == "train":
        yield fixed
    else:
        raise ImagesError(f"{text} has no split {split!r}: it knows no splits; hold out a part of the training images")


def _construct(text: str, kind: Any, folder: str, attempts: Iterator[dict[str, Any]]) -> Any:
    unknown = ""
    for arguments in attempts:
        try:
            return kind(folder, **arguments)
        except ValueError as error:
            if "argument split" not in str(error):
                raise ImagesError(f"{text} cannot be opened: {error}") from None
            unknown = unknown or str(error)
        except (OSError, RuntimeError, EOFError, KeyError, ImportError) as error:
            said = str(error).partition(" You can use download=True")[0]
            raise ImagesError(
                f"{text} cannot be opened: {said or type(error).__name__}. Put the files there; nothing is downloaded"
            ) from None
    raise ImagesError(f"{text}: {unknown}")


def _load(path: str) -> Image.Image:
    try:
        return decode(read_regular(Path(path), IMAGE_BYTES))
    except LimitError as error:
        raise UnreadableImage(str(error)) from None


@dataclass(frozen=True)
class _Pictures:
    data: Any

    def __call__(self, index: int) -> Image.Image:
        picture: Image.Image = _item(self.data, index)[0]
        return picture.convert("RGB")


def _item(data: Any, index: int) -> tuple[Any, Any]:
    try:
        item = data[index]
    except DAMAGE as error:
        raise UnreadableImage(str(error) or type(error).__name__) from None
    return item if isinstance(item, tuple) and len(item) == 2 else (None, None)


def _labels(text: str, data: Any) -> NDArray[np.int64]:
    """Return labels from the set's own list where it agrees with a few items, else from every item."""
    probes = {}
    for index in sorted({0, len(data) // 3, len(data) // 2, len(data) - 1}):
        try:
            picture, target = _item(data, index)
        except UnreadableImage:
            continue
        if not isinstance(picture, Image.Image) or not isinstance(target, int | np.integer):
            raise ImagesError(f"{text} is not a set of images with one class each; classification is what is trained")
        probes[index] = int(target)
    if not probes:
        raise ImagesError(f"{text}: none of the images that were tried can be read")
    for candidate in _listed(data):
        if all(candidate[index] == target for index, target in probes.items()):
            return candidate
    return np.array([_target(data, index) for index in track(range(len(data)), "Reading labels")], dtype=np.int64)


def _listed(data: Any) -> Iterator[NDArray[np.int64]]:
    samples = getattr(data, "_samples", None)
    lists = [getattr(data, name, None) for name in TARGETS]
    if isinstance(samples, list):
        lists.append([s[1] if isinstance(s, tuple) and len(s) == 2 else None for s in samples])
    for found in lists:
        array = np.asarray(found)
        if array.dtype.kind in "iu" and array.shape == (len(data),):
            yield array.astype(np.int64)


def _target(data: Any, index: int) -> int:
    try:
        return int(_item(data, index)[1])
    except UnreadableImage:
        return UNLABELLED


def _classes(data: Any) -> tuple[str, ...]:
    found = getattr(data, "classes", None) or getattr(data, "categories", None) or ()
    return tuple(str(name[0] if isinstance(name, tuple) and name else name) for name in found)
