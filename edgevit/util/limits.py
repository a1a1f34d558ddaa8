"""How much of a file edgevit takes in: one table, which errors name and docs/limits.md shows; and how files are opened.

Whoever wrote a file may have meant harm. So only regular files are read (a pipe would wait for ever, a device never
end), a size is checked before anything is read or unpacked, and counts and ranges before anything is built of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most of something that is taken in: `value` in `unit`; `of` says of what."""

    of: str
    value: int
    unit: str

    @property
    def said(self) -> str:
        """Describe of what, and how much, as errors say it."""
        return f"{self.of}: {self}"

    def __str__(self) -> str:
        return f"{self.value} {self.unit}"


DOCUMENT_BYTES = Limit(of="a JSON document (program.json, manifest.json, a measurement)", value=16 * _MIB, unit="bytes")
MODEL_JSON_BYTES = Limit(of="model.json of a compiled model", value=2 * _MIB, unit="bytes")
ARENA_BYTES = Limit(of="the arena of a compiled model", value=16 * 1024 * _MIB, unit="bytes")
DOCUMENT_DEPTH = Limit(of="lists and tables inside each other in a document", value=64, unit="levels")
DOCUMENT_VALUES = Limit(of="values in a JSON document (commas and brackets count)", value=1_000_000, unit="values")
INTEGER_BITS = Limit(of="a whole number in a document", value=64, unit="bits")
TEXT_BYTES = Limit(of="a text file (labels, class lists, image lists)", value=16 * _MIB, unit="bytes")
LINE_CHARACTERS = Limit(of="a line of a text file", value=65_536, unit="characters")
IMAGE_BYTES = Limit(of="an image file", value=256 * _MIB, unit="bytes")
ARRAY_HEADER_BYTES = Limit(of="the header of a NumPy array", value=10_000, unit="bytes")
ARCHIVE_MEMBERS = Limit(of="members of a bundle's zip", value=10_000, unit="members")
BUNDLE_EXPANSION = Limit(of="a bundle's zip, unpacked", value=20, unit="times its size")
WEIGHTS_BYTES = Limit(of="a weights file, and what it unpacks to", value=64 * 1024 * _MIB, unit="bytes")
WEIGHTS_EXPANSION = Limit(of="a weights file, unpacked, beyond the first 1 MiB", value=20, unit="times its size")
WEIGHTS_TENSORS = Limit(of="tensors in a weights file", value=20_000, unit="tensors")
TENSOR_NAME = Limit(of="the name of a tensor", value=512, unit="characters")
PICKLE_STEPS = Limit(of="the structure of a torch file", value=1_000_000, unit="steps")
WEIGHTS_DEPTH = Limit(of="dictionaries inside each other in a weights file", value=16, unit="levels")
IMAGE_SIDE = Limit(of="a side of a model's image, also resized before the crop", value=8192, unit="pixels")
BRANCHES = Limit(of="residual branches of a model", value=1024, unit="branches")
WIDTH = Limit(of="a width of a model (dim, heads, neurons, token_dim, prefix tokens)", value=65_536, unit="columns")
CLASSES = Limit(of="classes of a model", value=1_000_000, unit="classes")
TENSOR_DIMENSIONS = Limit(of="dimensions of a tensor", value=8, unit="dimensions")
THREADS = Limit(of="threads of a runtime", value=1024, unit="threads")


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a number of a Program may be; beyond it, arithmetic in float32 means nothing."""

    of: str
    low: float
    high: float

    @property
    def said(self) -> str:
        """Describe of what, and from where to where, as errors say it."""
        return f"{self.of}: {self}"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


EPS = Range(of="the eps of a LayerNorm", low=1e-20, high=1.0)
SCALE = Range(of="the scale of attention", low=1e-6, high=1e6)
THRESHOLD = Range(of="the threshold of a gate", low=-1e20, high=1e20)
# Beyond the cosines that there are only where `effort` alone is to reach them.
LIKENESS = Range(of="the likeness above which tokens are merged", low=-8.0, high=8.0)
CROP = Range(of="crop_pct", low=0.01, high=10.0)
MEAN = Range(of="a channel's mean", low=-1e6, high=1e6)
STD = Range(of="a channel's std", low=1e-6, high=1e6)


class LimitError(ValueError):
    """A file that is no regular file, or more than its limit; callers turn it into the error of their kind."""


@contextmanager
def open_regular(path: Path, limit: Limit) -> Iterator[BinaryIO]:
    """Open a regular file of no more bytes than `limit` for reading; nothing is read yet.

    Raises:
        LimitError: a folder, pipe, socket or device (also by a link), or more bytes than allowed.
        OSError: missing, or not to be read.
    """
    check_regular(path.stat(), limit)
    # Not blocking: should the file have become a pipe since, opening it must not wait for a writer.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(number, "rb") as file:
        check_regular(os.fstat(file.fileno()), limit)
        yield file


def check_regular(status: os.stat_result, limit: Limit) -> None:
    """Raise LimitError for what is no regular file, or has more bytes than `limit`."""
    if not stat.S_ISREG(status.st_mode):
        raise LimitError(f"it is {_kind(status.st_mode)}, and only regular files are read")
    if status.st_size > limit.value:
        raise LimitError(f"it has {status.st_size} bytes, allowed for {limit.said}")


def read_regular(path: Path, limit: Limit) -> bytes:
    """All bytes of a regular file, checked before and while reading: files under /proc say 0 bytes and have more.

    Raises:
        LimitError: no regular file, or more bytes than allowed.
        OSError: missing, or not to be read.
    """
    with open_regular(path, limit) as file:
        content = bytearray()
        while block := file.read(_MIB):
            content += block
            if len(content) > limit.value:
                raise LimitError(f"it has more than {limit.value} bytes, allowed for {limit.said}")
    return bytes(content)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")


# Of targets, recipes, lists of text, and images.
SETTINGS_BYTES = Limit(of="a target or a recipe", value=_MIB // 4, unit="bytes")
TOML_VALUES = Limit(of="values in a TOML file (commas, brackets and = count)", value=500_000, unit="values")
TEXT_LINES = Limit(of="lines of a text file", value=1_000_000, unit="lines")
TABLE_COLUMNS = Limit(of="columns of a labels.csv", value=100, unit="columns")
IMAGE_PIXELS = Limit(of="an image", value=89_478_485, unit="pixels")  # from where on Pillow warns of a bomb
PICTURE_SIDE = Limit(of="a side of an image", value=65_535, unit="pixels")  # what a JPEG can have
IMAGE_SCANS = Limit(of="scans of a JPEG", value=32, unit="scans")  # each passes over all pixels; usual: 1 to 12
IMAGE_PARTS = Limit(of="segments of a JPEG's header or chunks of a PNG, with what fills up", value=65_536, unit="parts")
PPM_HEADER_BYTES = Limit(of="the header of a PPM", value=4096, unit="bytes")
SOURCE_BYTES = Limit(of="an archive of images", value=1 << 40, unit="bytes")
SOURCE_MEMBERS = Limit(of="members of an archive of images", value=200_000, unit="members")
SOURCE_HEADER_BYTES = Limit(of="a header of a tar", value=_MIB, unit="bytes")
ZIP_DIRECTORY_BYTES = Limit(of="the directory of a zip", value=16 * _MIB, unit="bytes")
SOURCE_NAME = Limit(of="the name of a member", value=4096, unit="characters")
PACKED_BYTES = Limit(of="an array in an .npz of images", value=8 * 1024 * _MIB, unit="bytes")
PACKED_EXPANSION = Limit(of="an array in an .npz of images, beyond 64 MiB", value=4, unit="times the size of the file")
PACKED_IMAGES = Limit(of="images in an .npz", value=1_000_000, unit="images")
RUNS = Limit(of="timed runs per path", value=1_000_000, unit="runs")
SECONDS = Limit(of="a time to wait or to search", value=30 * 86_400, unit="seconds")
SEED = Limit(of="a seed", value=2**63 - 1, unit="(2^63 - 1)")

# Of processes that run a bundle's model: `edgevit/devices/confined.py`, and `runner/run.py`, which has them by heart.
RUN_SECONDS = Limit(of="loading a bundle's model and running its golden inputs", value=600, unit="seconds")
RUN_BYTES = Limit(of="memory to run a bundle's model, beside twice its stated bound", value=2048 * _MIB, unit="bytes")
RUN_EXPANSION = Limit(of="memory to run a bundle's model, beside that", value=8, unit="times its files' size")
RUN_THREAD_BYTES = Limit(of="memory to run a bundle's model, beside that, a thread", value=16 * _MIB, unit="bytes")
RUN_BOUND_BYTES = Limit(of="what a stated bound counts for there", value=16 * 1024 * _MIB, unit="bytes")
RUN_FILE_BYTES = Limit(of="a file that is written while a bundle's model runs", value=1024 * _MIB, unit="bytes")
