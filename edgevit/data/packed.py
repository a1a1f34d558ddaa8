"""Many small images in one .npz: JPEG bytes one after another, where each begins, labels and class names."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.data.manifest import MAX_LABEL
from edgevit.errors import ImagesError

# What reading an image can raise: gone, cut short, or a damaged or odd member of an archive.
READ_FAULTS = (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
NPZ_KEYS = "jpeg (uint8, all files one after another), offset (n + 1 whole numbers), label (n), classes (names)"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One reader per image, its labels if there are any, and the classes' names (empty if unknown)."""

    readers: tuple[Callable[[], bytes], ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reader:
    data: NDArray[np.uint8]
    start: int
    end: int

    def __call__(self) -> bytes:
        return self.data[self.start : self.end].tobytes()


def read_packed(source: Path) -> Packed:
    """The images of an .npz with the keys jpeg, offset, label and classes.

    Raises:
        ImagesError: not such a file, or its parts do not fit together.
    """
    arrays = _read_npz(source)
    data, offsets = arrays.get("jpeg"), arrays.get("offset")
    labels, classes = arrays.get("label"), arrays.get("classes", np.array([], dtype=np.str_))
    faults = []
    if data is None or offsets is None:
        raise ImagesError(f"{source} has the keys {', '.join(arrays) or 'none'}; needed: {NPZ_KEYS}")
    if data.dtype != np.uint8 or data.ndim != 1:
        faults.append(f"jpeg: got {data.dtype} {list(data.shape)}, allowed: uint8 [bytes]")
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        faults.append(f"offset: got {offsets.dtype} {list(offsets.shape)}, allowed: whole numbers [images + 1]")
    elif offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any() or offsets[-1] > data.size:
        faults.append(f"offset: must rise from 0 or more to at most {data.size}, the length of jpeg")
    count = max(0, offsets.size - 1)
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (count,)):
        faults.append(f"label: got {labels.dtype} {list(labels.shape)}, allowed: whole numbers [{count}]")
    elif labels is not None and labels.size and (labels.min() < 0 or labels.max() > MAX_LABEL):
        faults.append(f"label: got {labels.min()} to {labels.max()}, allowed: 0 to {MAX_LABEL}")
    if classes.dtype.kind != "U" or classes.ndim != 1:
        faults.append(f"classes: got {classes.dtype} {list(classes.shape)}, allowed: text [classes]")
    if faults:
        raise ImagesError(f"{source} is refused:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return Packed(
        readers=tuple(_Reader(data, int(start), int(end)) for start, end in pairwise(offsets)),
        labels=None if labels is None else tuple(int(label) for label in labels),
        classes=tuple(str(name) for name in classes),
    )


def _read_npz(source: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, never unpickled."""
    try:
        with source.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ImagesError(f"{source} is one array, no .npz; needed: {NPZ_KEYS}")
            return {key: file[key] for key in ("jpeg", "offset", "label", "classes") if key in file}
    except (*READ_FAULTS, ValueError, MemoryError) as error:
        raise ImagesError(f"{source} cannot be read as an .npz of plain arrays: {error}") from None
