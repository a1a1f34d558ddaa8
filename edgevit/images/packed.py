"""Many small images in one .npz: JPEG bytes one after another, where each begins, labels and class names."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import ImagesError
from edgevit.images.toml_list import MAX_LABEL
from edgevit.util.bounded import Bounded
from edgevit.util.limits import (
    ARRAY_HEADER_BYTES,
    PACKED_BYTES,
    PACKED_EXPANSION,
    PACKED_IMAGES,
    ZIP_DIRECTORY_BYTES,
    LimitError,
    open_regular,
)

# What reading an image can raise: gone, cut short, or a damaged or odd member of an archive.
READ_FAULTS = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
KEYS = ("jpeg", "offset", "label", "classes")
BLOCK_BYTES = 1 << 20
SMALL_BYTES = 64 << 20  # what any array of an .npz may unpack to
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
    """Return the images of an .npz with the keys jpeg, offset, label and classes.

    Raises:
        ImagesError: not such a file, or its parts do not fit together.
    """
    arrays = _read_npz(source)
    data, offsets = arrays["jpeg"], arrays["offset"]
    labels, classes = arrays.get("label"), arrays.get("classes", np.array([], dtype=np.str_))
    faults = []
    if data.dtype != np.uint8:
        faults.append(f"jpeg: got {data.dtype} {list(data.shape)}, allowed: uint8 [bytes]")
    if offsets.dtype.kind not in "iu" or not 2 <= len(offsets) <= PACKED_IMAGES.value + 1:
        faults.append(
            f"offset: got {offsets.dtype} {list(offsets.shape)}, allowed: whole numbers [images + 1], {PACKED_IMAGES}"
        )
    elif offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any() or offsets[-1] > data.size:
        faults.append(f"offset: must rise from 0 or more to at most {data.size}, the length of jpeg")
    count = max(0, offsets.size - 1)
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (count,)):
        faults.append(f"label: got {labels.dtype} {list(labels.shape)}, allowed: whole numbers [{count}]")
    elif labels is not None and labels.size and (labels.min() < 0 or labels.max() > MAX_LABEL):
        faults.append(f"label: got {labels.min()} to {labels.max()}, allowed: 0 to {MAX_LABEL}")
    if classes.dtype.kind != "U" or len(classes) > MAX_LABEL + 1:
        faults.append(f"classes: got {classes.dtype} {list(classes.shape)}, allowed: text [classes]")
    if faults:
        raise ImagesError(f"{source} is refused:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return Packed(
        readers=tuple(_Reader(data, int(start), int(end)) for start, end in pairwise(offsets)),
        labels=None if labels is None else tuple(int(label) for label in labels),
        classes=tuple(str(name) for name in classes),
    )


def _read_npz(source: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, never unpickled, and none larger than what a file of this size can honestly hold."""
    try:
        with open_regular(source, PACKED_BYTES) as raw:
            most = max(SMALL_BYTES, PACKED_EXPANSION.value * source.stat().st_size)
            with zipfile.ZipFile(Bounded(raw, ZIP_DIRECTORY_BYTES)) as archive:
                there = {name: archive.getinfo(name) for name in archive.namelist()}
                kept = {key: there[f"{key}.npy"] for key in KEYS if f"{key}.npy" in there}
                if len(there) != len(archive.infolist()) or not kept.keys() >= {"jpeg", "offset"}:
                    names = ", ".join(name.removesuffix(".npy")[:40] for name in list(there)[:8])
                    raise LimitError(f"it has the keys {names or 'none'}; needed, each once: {NPZ_KEYS}")
                return {key: _read_array(archive, member, most) for key, member in kept.items()}
    except zipfile.BadZipFile as error:
        raise ImagesError(
            f"{source} cannot be read as an .npz of plain arrays: it is no .npz ({error}); needed: {NPZ_KEYS}"
        ) from None
    except Exception as error:  # a hostile header can raise nearly anything
        raise ImagesError(
            f"{source} cannot be read as an .npz of plain arrays: {error or type(error).__name__}"
        ) from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most_bytes: int) -> NDArray[Any]:
    """Return one array, whose header and size are looked at before memory is taken for it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise LimitError(f"{member.filename} is an array of version {version}, allowed: 1.0 and 2.0")
        shape, _, dtype = read_header[version](file, max_header_size=ARRAY_HEADER_BYTES.value)
        size_bytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 0:
            raise LimitError(f"{member.filename} is of {dtype} {list(shape)[:8]}, allowed: plain values, one dimension")
        if size_bytes + file.tell() != member.file_size:
            raise LimitError(f"{member.filename} says it has {size_bytes} bytes of values, and has not")
        if member.file_size > min(most_bytes, PACKED_BYTES.value):
            raise LimitError(
                f"{member.filename} has {member.file_size} bytes, allowed: {PACKED_BYTES}, and for "
                f"{PACKED_EXPANSION.of}: {PACKED_EXPANSION}"
            )
        content = np.empty(size_bytes, dtype=np.uint8)
        for start in range(0, size_bytes, BLOCK_BYTES):
            # A block that is shorter than its place does not fit, which is an error too.
            content[start : start + BLOCK_BYTES] = np.frombuffer(file.read(BLOCK_BYTES), dtype=np.uint8)
        return content.view(dtype)
