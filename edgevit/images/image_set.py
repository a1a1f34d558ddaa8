"""Images as the network's input: read, resized and cropped exactly as timm evaluates, kept as uint8.

`edgevit/bundle/runner.py` prepares a device's photographs by the same steps; a test holds both to the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevit.errors import ImagesError
from edgevit.images.headers import JPEG, check_header
from edgevit.images.match import Labelling, place_labels
from edgevit.images.packed import READ_FAULTS
from edgevit.images.sources import Entry, labelling, list_images
from edgevit.program.spec import ImageSpec, ProgramSpec
from edgevit.util.limits import IMAGE_PIXELS, IMAGE_SCANS, PICTURE_SIDE
from edgevit.util.progress import Say, track
from edgevit.util.threads import in_order, threads_here

T = TypeVar("T")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # it logs what the errors say, too
UNREADABLE_LIMIT = 0.1
READERS = 2  # pictures that are decoded at once: one of a phone takes 100 MB
TESTED = ("val", "test")  # the splits to judge a model on, the first that a source has
# Of Pillow's formats only these are opened, whatever a file is called: an EPS named .jpg would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
SCAN = b"\xff\xda"  # how each scan of a JPEG begins
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
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
        labelling: what the labels are, of the whole source.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    unreadable: tuple[str, ...]
    digest: str
    source: Path
    labelling: Labelling = Labelling()

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
    return load_entries(list_images(source), source, image, limit=limit, labelled=labelled, splits=splits)


def load_entries(
    entries: Sequence[Entry],
    source: Path,
    image: ImageSpec,
    *,
    limit: int | None = None,
    labelled: bool = False,
    splits: Sequence[str] = (),
) -> ImageSet:
    """Load listed images, as `load_images` does; `source` is what messages and the set call them."""
    preferred = next((s for s in splits if any(e.split == s for e in entries)), None)
    chosen = spread([e for e in entries if preferred is None or e.split == preferred], limit)
    if labelled:
        _check_labels(source, chosen)
    pixels = np.empty((len(chosen), image.height, image.width, 3), dtype=np.uint8)
    read: list[Entry] = []
    unreadable: list[str] = []
    with _decoding():  # a process has one list of what it warns of: it is set for all threads at once
        prepared = in_order(lambda entry: _prepared(entry, image), chosen, min(threads_here(), READERS))
        for entry, found in zip(chosen, track(prepared, f"Reading {len(chosen)} images", len(chosen)), strict=True):
            if isinstance(found, UnreadableImage):
                unreadable.append(f"{entry.name}: {found}")
            else:
                pixels[len(read)] = found
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
        labelling=labelling(entries),
    )


def set_of_array(
    images: NDArray[np.uint8], image: ImageSpec, *, labels: NDArray[np.int64] | None = None, limit: int | None = None
) -> ImageSet:
    """Return prepared images, uint8 RGB `[n, height, width, 3]`, as a set; `labels` int64 `[n]` are class numbers.

    Raises:
        ImagesError: another type or shape than the model takes, or no images.
    """
    wanted = (image.height, image.width, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted or not len(images):
        raise ImagesError(
            f"images are {images.dtype} {list(images.shape)}; an array must be uint8 RGB [n, {image.height}, "
            f"{image.width}, 3] of at least one image, already resized and cropped; give files to have that done"
        )
    if labels is not None and labels.shape != (len(images),):
        raise ImagesError(f"labels are {list(labels.shape)}; give one class number per image, [{len(images)}]")
    chosen = list(spread(range(len(images)), limit))
    pixels = np.ascontiguousarray(images[chosen])
    taken = None if labels is None else np.asarray(labels, np.int64)[chosen]
    return ImageSet(
        images=pixels,
        labels=taken,
        names=tuple(f"image {index}" for index in chosen),
        unreadable=(),
        digest=_digest(pixels, taken),
        source=Path("array"),
    )


def number_labels(loaded: ImageSet, spec: ProgramSpec, say: Say = lambda _: None) -> ImageSet:
    """Return labelled images with the labels of their source turned into places among the model's classes.

    `say` is told how they were found (see `match.place_labels`).

    Raises:
        ImagesError: no labels, or labels that are no classes of the model.
    """
    if loaded.labels is None or not len(loaded.labels):
        raise ImagesError(f"{loaded.source} has no labels; give images labelled as {spec.name} was trained")
    labels, how = place_labels(loaded.labels, loaded.labelling, spec, loaded.source)
    if how:
        say(how)
    return replace(loaded, labels=labels)


def left_out(loaded: ImageSet) -> str:
    """Return a warning of the images that could not be read; empty where all could."""
    count, total = len(loaded.unreadable), len(loaded) + len(loaded.unreadable)
    return (
        f"warning: {count} of {total} images in {loaded.source} cannot be read and are left out (first: "
        f"{loaded.unreadable[0]})"
        if count
        else ""
    )


class UnreadableImage(Exception):
    """Why the bytes of one image are of no use; the caller counts them."""


def open_image(entry: Entry) -> Image.Image:
    """Read and decode one image of a source, RGB.

    Raises:
        UnreadableImage: its bytes cannot be read, or are no image.
    """
    with _decoding():
        return _opened(entry)


def _opened(entry: Entry) -> Image.Image:
    try:
        raw = entry.read()
    except READ_FAULTS as error:
        raise UnreadableImage(str(error) or type(error).__name__) from None
    return _decoded(raw)


def _prepared(entry: Entry, image: ImageSpec) -> NDArray[np.uint8] | UnreadableImage:
    try:
        return prepare(_opened(entry), image)
    except UnreadableImage as error:
        return error


def decode(raw: bytes) -> Image.Image:
    """Decode an image file to an RGB image of its first frame, with the EXIF orientation still in its `info`.

    Modes are converted as timm converts them, by Pillow, which drops alpha; but grey of more than 8 bits, which Pillow
    would clip, is scaled, and pixels of an unknown range are refused.
    """
    with _decoding():
        return _decoded(raw)


@contextmanager
def _decoding() -> Iterator[None]:
    with warnings.catch_warnings():
        # What Pillow remarks about odd metadata is no news to the user; a decompression bomb is.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decoded(raw: bytes) -> Image.Image:
    try:
        check_header(raw)
        with Image.open(io.BytesIO(raw), formats=FORMATS) as file:
            _check_size(file, raw)
            return _to_rgb(file)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not an image of these formats: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(f"too many pixels, allowed: {IMAGE_PIXELS}") from None
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise UnreadableImage(str(error) or type(error).__name__) from None


def _check_size(file: Image.Image, raw: bytes) -> None:
    """What its header says an image will take, before it is decoded."""
    width, height = file.size
    if width * height > IMAGE_PIXELS.value or max(width, height) > PICTURE_SIDE.value:
        raise UnreadableImage(f"{width} x {height} pixels, allowed: {IMAGE_PIXELS}, {PICTURE_SIDE.value} a side")
    scans = raw.count(SCAN) if raw.startswith(JPEG) else 0
    if scans > IMAGE_SCANS.value:
        raise UnreadableImage(f"{scans} scans, allowed: {IMAGE_SCANS}")


def _to_rgb(file: Image.Image) -> Image.Image:
    if file.mode == "F":
        raise UnreadableImage("float values, whose range the file does not say; scale them to 0..255 and save 8 bits")
    if file.mode != "I" and not file.mode.startswith("I;"):
        return file.convert("RGB")
    tags = getattr(file, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]  # a PNG's and a PPM's values are brought to 16 bits
    if bits > 16 or tags.get(SAMPLE_FORMAT, (1,))[0] != 1:
        raise UnreadableImage(
            f"integers of {bits} bits, whose range the file does not say; scale to 0..255 and save 8 bits"
        )
    most = (1 << bits) - 1
    values = np.asarray(file)
    levels = np.empty(values.shape, dtype=np.uint8)
    for first in range(0, len(values), 64):  # rows at a time, so that no copies of a large image pile up
        rows = values[first : first + 64].astype(np.uint32)
        levels[first : first + 64] = ((most - rows if tags.get(PHOTOMETRIC) == 0 else rows) * 255 + most // 2) // most
    picture = Image.fromarray(levels).convert("RGB")
    picture.info.update(file.info)
    return picture


def upright(picture: Image.Image, image: ImageSpec) -> Image.Image:
    """Return the picture turned as its EXIF orientation says, if the model's images are.

    Raises:
        UnreadableImage: the orientation is asked for and damaged.
    """
    if image.orientation == "ignore":
        return picture
    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # a damaged tag can raise nearly anything
        raise UnreadableImage(f"damaged EXIF orientation ({error or type(error).__name__})") from None


def prepare(picture: Image.Image, image: ImageSpec) -> NDArray[np.uint8]:
    """Turn, resize and crop or pad as `image` says: RGB image to uint8 `[height, width, 3]`.

    Same pixels as timm's `transforms_imagenet_eval` with the same crop mode, torchvision's roundings included.

    Raises:
        UnreadableImage: of such a shape that nothing or gigabytes would be left of it.
    """
    if image.interpolation not in FILTERS:
        raise ImagesError(f"unknown interpolation {image.interpolation!r}; allowed: {', '.join(FILTERS)}")
    picture = upright(picture, image)
    width, height = _resized(picture.width, picture.height, image)
    if not 0 < width * height <= RESIZED_PIXELS_LIMIT:
        raise UnreadableImage(f"{picture.width} x {picture.height} pixels is no shape to crop a square from")
    if (width, height) != picture.size:
        picture = picture.resize((width, height), FILTERS[image.interpolation])
    left, top = _offset(width, image.width), _offset(height, image.height)
    fill = tuple(round(255 * v) for v in image.mean) if image.crop_mode == "border" else (0, 0, 0)
    cropped = Image.new("RGB", (image.width, image.height), fill)
    cropped.paste(picture, (-left, -top))
    return np.asarray(cropped, dtype=np.uint8)


def spread(entries: Sequence[T], limit: int | None) -> tuple[T, ...]:
    """Return at most `limit` entries, evenly spread over all of them, first one included."""
    if limit is not None and limit < 1:
        raise ImagesError(f"the number of images to load must be 1 or more, got {limit}")
    if limit is None or limit >= len(entries):
        return tuple(entries)
    return tuple(entries[i * len(entries) // limit] for i in range(limit))


def _resized(width: int, height: int, image: ImageSpec) -> tuple[int, int]:
    target_width, target_height = (math.floor(size / image.crop_pct) for size in (image.width, image.height))
    if image.crop_mode == "squash":
        return target_width, target_height
    ratios = height / target_height, width / target_width
    if image.crop_mode == "border":
        return round(width / max(ratios)), round(height / max(ratios))
    if target_width == target_height:  # torchvision's Resize rounds the long side down
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_width * width / height), target_width
    return round(width / min(ratios)), round(height / min(ratios))  # timm's ResizeKeepRatio rounds to nearest


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
