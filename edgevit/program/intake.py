"""Weights files looked at before anything is built of them: kind, size, sizes when unpacked, types. Without torch.

Everything here raises `LimitError`, a ValueError, whose text says what is wrong; callers name the file.
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.util import limits, strict_json
from edgevit.util.bounded import open_zip
from edgevit.util.limits import LimitError

# Sizes of the types whose meaning is known, in bytes; of 8 and 4 bits wide floats the scale is not in the file.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4}
_BYTES |= {"I64": 8, "U64": 8}
_METADATA = "__metadata__"
_SLACK_BYTES = 1 << 20
_ZIP = b"PK\x03\x04"
# What reading a damaged or hostile zip raises.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
    struct.error,
)


def check_file(path: Path) -> int:
    """Return the size of a weights file in bytes, if it is a regular file within the limit."""
    with limits.open_regular(path, limits.WEIGHTS_BYTES) as file:
        return file.seek(0, 2)


def is_zip(path: Path) -> bool:
    """Return whether torch takes a file for a zip: by its first bytes, whatever an end further on may say."""
    with limits.open_regular(path, limits.WEIGHTS_BYTES) as file:
        return file.read(len(_ZIP)) == _ZIP


def unpacked_allowed(file_bytes: int) -> int:
    """Return the most that may be built of a weights file, in bytes."""
    return min(limits.WEIGHTS_BYTES.value, _SLACK_BYTES + limits.WEIGHTS_EXPANSION.value * file_bytes)


def check_zip(path: Path) -> None:
    """Hold the table of contents of a zip (torch, NumPy) against the limits, before anything is unpacked."""
    allowed = unpacked_allowed(check_file(path))
    try:
        with open_zip(path) as archive:
            members = archive.infolist()
    except ZIP_ERRORS as error:
        raise error if isinstance(error, LimitError) else LimitError(f"its zip is damaged: {error}") from error
    if len(members) > limits.WEIGHTS_TENSORS.value:
        raise LimitError(f"it has {len(members)} members, allowed for {limits.WEIGHTS_TENSORS.said}")
    unpacked = sum(m.file_size for m in members)
    if unpacked > allowed:
        raise LimitError(f"it unpacks to {unpacked} bytes, allowed for {limits.WEIGHTS_EXPANSION.said}: {allowed}")
    if len({m.filename for m in members}) != len(members):
        raise LimitError("a member of its zip is there twice")


def check_arrays(path: Path) -> None:
    """`check_zip`, and that every array of an .npz is as large as its header says, and plain numbers."""
    check_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    raise LimitError(f"its member {strict_json.shown(member.filename)} is no array (.npy)")
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                    if math.prod(shape) * dtype.itemsize > member.file_size:
                        raise LimitError(
                            f"{strict_json.shown(member.filename)} claims {list(shape)} of {dtype} and has "
                            f"{member.file_size} bytes"
                        )
    except ZIP_ERRORS as error:
        raise error if isinstance(error, LimitError) else LimitError(f"its zip is damaged: {error}") from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an .npy file."""
    most = limits.ARRAY_HEADER_BYTES.value
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=most)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=most)
    except (TypeError, SyntaxError, OverflowError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise LimitError(f"the header of an array is damaged: {error}") from error
    if dtype.hasobject or dtype.names:
        raise LimitError(f"an array holds {dtype}, allowed: numbers")
    if len(shape) > limits.TENSOR_DIMENSIONS.value or any(type(s) is not int or s < 0 for s in shape):
        raise LimitError(f"an array has shape {list(shape)[:9]}, allowed for {limits.TENSOR_DIMENSIONS.said}")
    return shape, dtype


def check_safetensors(path: Path, allowed: Collection[str] = tuple(_BYTES)) -> None:
    """Hold the header of a safetensors file against the limits; every tensor's type must be among `allowed`."""
    size = check_file(path)
    with limits.open_regular(path, limits.WEIGHTS_BYTES) as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise LimitError(f"it has {size} bytes, and its header claims {length}")
        if length > limits.DOCUMENT_BYTES.value:
            raise LimitError(f"its header has {length} bytes, allowed for {limits.DOCUMENT_BYTES.said}")
        header = strict_json.parse(file.read(length))
    if not isinstance(header, dict):
        raise LimitError("its header is no table")
    if len(header) > limits.WEIGHTS_TENSORS.value:
        raise LimitError(f"it has {len(header)} tensors, allowed for {limits.WEIGHTS_TENSORS.said}")
    for name, entry in header.items():
        if name != _METADATA:
            _check_entry(name, entry, allowed, size - 8 - length)


def _check_entry(name: str, entry: Any, allowed: Collection[str], data_bytes: int) -> None:
    where = strict_json.shown(name)
    if len(name) > limits.TENSOR_NAME.value:
        raise LimitError(f"a tensor's name has {len(name)} characters, allowed for {limits.TENSOR_NAME.said}")
    if not isinstance(entry, Mapping) or not isinstance(entry.get("shape"), list):
        raise LimitError(f"the entry of {where} in its header is no tensor")
    kind, shape = entry.get("dtype"), entry["shape"]
    if not isinstance(kind, str) or kind not in allowed:
        raise LimitError(
            f"{where} holds {strict_json.shown(kind)}, allowed: {', '.join(allowed)}; "
            "give the weights as float32 or float16"
        )
    if len(shape) > limits.TENSOR_DIMENSIONS.value:
        raise LimitError(f"{where} has {len(shape)} dimensions, allowed for {limits.TENSOR_DIMENSIONS.said}")
    if not all(type(s) is int and s >= 0 for s in shape) or math.prod(shape) * _BYTES[kind] > data_bytes:
        raise LimitError(f"{where} claims the shape {shape} of {kind}, and the file has {data_bytes} bytes of data")
