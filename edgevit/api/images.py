"""Take images as a caller gives them: a path, a list of paths, or an array that is ready for the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import ImagesError
from edgevit.images.image_set import ImageSet, load_entries, load_images, set_of_array
from edgevit.images.sources import list_images
from edgevit.program.spec import ImageSpec

Images: TypeAlias = str | Path | Sequence[str | Path] | NDArray[np.uint8]
LabelledImages: TypeAlias = str | Path | tuple[NDArray[np.uint8], NDArray[np.int64]]


def take_images(
    images: Images | LabelledImages,
    image: ImageSpec,
    *,
    limit: int | None = None,
    labelled: bool = False,
    splits: Sequence[str] = (),
) -> ImageSet:
    """Return images ready for a model.

    Args:
        images: a path (file, folder, .tar, .zip, .npz or TOML list), a list of paths, a uint8 RGB array
            `[n, height, width, 3]` of the model's image size, or such an array and int64 class numbers `[n]`.
        image: the model's image size and how files are resized and cropped to it.
        limit: at most so many, evenly spread.
        labelled: whether every image needs a label.
        splits: those to prefer, where a path has splits: the first that it has is taken, otherwise all.

    Raises:
        ImagesError: none found, of another kind or shape, without a label, or more than 10 % unreadable.
    """
    if isinstance(images, str | Path):
        return load_images(Path(images), image, limit=limit, labelled=labelled, splits=splits)
    if isinstance(images, np.ndarray):
        return _array(images, None, image, limit, labelled)
    if isinstance(images, tuple) and len(images) == 2 and isinstance(images[0], np.ndarray):
        return _array(images[0], np.asarray(images[1]), image, limit, labelled)
    paths = [Path(path) for path in images if isinstance(path, str | Path)]
    if not paths or len(paths) < len(images):
        raise ImagesError(
            f"images are {type(images).__name__} of {len(images)}; give a path, a list of paths, or a uint8 array "
            f"[n, {image.height}, {image.width}, 3]"
        )
    entries = [entry for path in paths for entry in list_images(path)]
    return load_entries(entries, Path(f"list of {len(paths)} paths"), image, limit=limit, labelled=labelled)


def _array(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None, image: ImageSpec, limit: int | None, labelled: bool
) -> ImageSet:
    if labelled and labels is None:
        raise ImagesError("an array holds no labels; give (images, labels), with one class number per image")
    return set_of_array(pixels, image, labels=labels if labelled else None, limit=limit)
