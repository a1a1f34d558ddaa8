"""Images as the network's input: read, resized and cropped exactly as timm evaluates, kept as uint8."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgevit.data.packed import READ_FAULTS
from edgevit.data.sources import Entry, list_images
from edgevit.errors import ImagesError
from edgevit.progress import track
from edgevit.spec import ImageSpec, ProgramSpec

T = TypeVar("T")
UNREADABLE_LIMIT = 0.1
TESTED = ("val", "test")  # the splits to judge a model on, the first that a source has
RESIZED_PIXELS_LIMIT = 1 << 26  # a strip of 1 x 5000 pixels would become one of 224 x 1120000
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images ready for the network.

    Attributes:
        images: uint8 RGB `[n, height, width, 3]`.
        labels: int64 `[n]`, or None where none were asked for.
        names: `[n]`, each image's path within the source.
        unreadable: `name: reason` of every image that was left out.
        digest: sha256 of shape, pixels and labels: two sets with the same digest are the same to any stage.
        source: where they came from.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    unreadable: tuple[str, ...]
    digest: str
    source: Path

    def __len__(self) -> int:
        return len(self.names)


def load_images(
    source: Path,
    image: ImageSpec,
    *,
    limit: int | None = None,
    labelled: bool = False,
    splits: Sequence[str] = (),
) -> ImageSet:
    """Load images from a file, a folder, a .tar or .zip, or a TOML manifest (see `sources.list_images`).

    `limit` takes that many, evenly spread over the source, so that a set sorted by class stays mixed. With `labelled`
    every image needs a label. `splits` names those to prefer: the first that the source has is taken, otherwise all.

    Raises:
        ImagesError: none found, wrong kind, a label missing, or more than 10 % of the images unreadable.
    """
    entries = list_images(source)
    preferred = next((s for s in splits if any(e.split == s for e in entries)), None)
    chosen = spread([e for e in entries if preferred is None or e.split == preferred], limit)
    if labelled:
        _check_labels(source, chosen)
    pixels = np.empty((len(chosen), image.height, image.width, 3), dtype=np.uint8)
    read: list[Entry] = []
    unreadable: list[str] = []
    for entry in track(chosen, f"Reading {len(chosen)} images"):
        try:
            pixels[len(read)] = prepare(open_image(entry), image)
        except UnreadableImage as error:
            unreadable.append(f"{entry.name}: {error}")
        else:
            read.append(entry)
    check_unreadable(source, unreadable, len(chosen))
    labels = np.array([entry.label for entry in read], dtype=np.int64) if labelled else None
    pixels = pixels[: len(read)]
    return ImageSet(
        images=pixels,
        labels=labels,
        names=tuple(entry.name for entry in read),
        unreadable=tuple(unreadable),
        digest=_digest(pixels, labels),
        source=source,
    )


def number_labels(loaded: ImageSet, spec: ProgramSpec) -> ImageSet:
    """Labelled images with the labels of their source turned into the model's class numbers.

    Raises:
        ImagesError: no labels, or one that is not among the model's.
    """
    numbers = spec.class_numbers
    place = {number: index for index, number in enumerate(numbers)}
    labels = [] if loaded.labels is None else loaded.labels.tolist()
    unknown = sorted(set(labels) - set(place))
    if unknown or not labels:
        known = f"0 to {len(numbers) - 1}" if numbers == tuple(range(len(numbers))) else ", ".join(map(str, numbers))
        got = f"a label {unknown[-1]}" if unknown else "no labels"
        raise ImagesError(
            f"{loaded.source} has {got}, but {spec.name} has {len(numbers)} classes ({known}); give images labelled as "
            "the model was trained"
        )
    return replace(loaded, labels=np.array([place[label] for label in labels], dtype=np.int64))


class UnreadableImage(Exception):
    """Why the bytes of one image are of no use; the caller counts them."""


def open_image(entry: Entry) -> Image.Image:
    """Read and decode one image of a source, RGB.

    Raises:
        UnreadableImage: its bytes cannot be read, or are no image.
    """
    try:
        raw = entry.read()
    except READ_FAULTS as error:
        raise UnreadableImage(str(error) or type(error).__name__) from None
    return decode(raw)


def decode(raw: bytes) -> Image.Image:
    """Bytes of an image file to an RGB image; orientation tags are ignored, as timm ignores them."""
    with warnings.catch_warnings():
        # What Pillow remarks about odd metadata is no news to the user; a decompression bomb is.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(raw)) as file:
                return file.convert("RGB")
        except UnidentifiedImageError:
            raise UnreadableImage("not an image that Pillow knows") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UnreadableImage("too many pixels") from None
        except (OSError, SyntaxError, ValueError, IndexError, EOFError, zlib.error) as error:  # Pillow raises them all
            raise UnreadableImage(str(error) or type(error).__name__) from None


def prepare(picture: Image.Image, image: ImageSpec) -> NDArray[np.uint8]:
    """Resize the short side to floor(size / crop_pct), crop the centre: RGB image to uint8 `[height, width, 3]`.

    Same pixels as timm's `transforms_imagenet_eval` with crop mode `center`, torchvision's roundings included.
    """
    if image.interpolation not in FILTERS:
        raise ImagesError(f"unknown interpolation {image.interpolation!r}; allowed: {', '.join(FILTERS)}")
    width, height = _resized(picture.width, picture.height, image)
    if width * height > RESIZED_PIXELS_LIMIT:
        raise UnreadableImage(f"{picture.width} x {picture.height} pixels is no shape to crop a square from")
    if (width, height) != picture.size:
        picture = picture.resize((width, height), FILTERS[image.interpolation])
    left, top = _offset(width, image.width), _offset(height, image.height)
    cropped = picture.crop((left, top, left + image.width, top + image.height))
    return np.asarray(cropped, dtype=np.uint8)


def spread(entries: Sequence[T], limit: int | None) -> tuple[T, ...]:
    """At most `limit` entries, evenly spread over all of them, first one included."""
    if limit is not None and limit < 1:
        raise ImagesError(f"the number of images to load must be 1 or more, got {limit}")
    if limit is None or limit >= len(entries):
        return tuple(entries)
    return tuple(entries[i * len(entries) // limit] for i in range(limit))


def _resized(width: int, height: int, image: ImageSpec) -> tuple[int, int]:
    target_width, target_height = (math.floor(size / image.crop_pct) for size in (image.width, image.height))
    if target_width == target_height:  # torchvision's Resize rounds the long side down
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_width * width / height), target_width
    ratio = min(height / target_height, width / target_width)  # timm's ResizeKeepRatio rounds to nearest
    return round(width / ratio), round(height / ratio)


def _offset(size: int, crop: int) -> int:
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _check_labels(source: Path, entries: tuple[Entry, ...]) -> None:
    without = [entry.name for entry in entries if entry.label is None]
    if without:
        raise ImagesError(
            f"{source} has no label for {len(without)} of {len(entries)} images (first: {without[0]}). "
            "Give a labels.csv with the columns file,label, or one folder per class"
        )


def check_unreadable(source: Path | str, unreadable: list[str], total: int) -> None:
    """Refuse a source of `total` images when more than 10 % of them are unreadable (`name: reason` each)."""
    if len(unreadable) > UNREADABLE_LIMIT * total:
        listed = "\n".join(f"  - {line}" for line in unreadable[:10])
        more = f"\n  ... and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        raise ImagesError(
            f"{len(unreadable)} of {total} images in {source} cannot be read, allowed: {UNREADABLE_LIMIT:.0%}. "
            f"Remove or repair them:\n{listed}{more}"
        )


def _digest(pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
