"""Changes to an input that keep its form: of a value in JSON, a member of a zip, a header of a tar, a line of TOML.

Bytes changed at random seldom get past a checksum or a parser; behind them lie most of the reader's lines. Half of the
changes are such bytes nevertheless.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

Bytes = Callable[[bytes, int], bytes]  # bytes and the most that may come out -> bytes changed at random

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 65536, 2**31, 2**32 + 1, 2**63 - 1, -(2**63), 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1e-320, 1e-20, 1e20, 1e308, -1e308, float("inf"), float("nan")),
    *("", "0", "-1", "a", "nan", "../x", "/etc/passwd", "a/b", "\u202e", "\x1b[2J", "\x00", "\u00e9" * 40, "9" * 30),
    *([], {}, [None], [[]], [0], ["a"], [1, 2], [1, 2, 3], [1e308, 1e308, 1e308], [0, 0, 0], {"a": 1}, {"": None}),
)
MARK = "\ufffe"
TOML_VALUES = (
    *("0", "-1", "1e308", "nan", "inf", "true", "''", '"a"', "[]", "{}", "[[]]", "1979-05-27", "07:32:00", "0xff"),
    *("9" * 30, "1_0", "[1, 2]", "{a = 1}", '"\\u202e"', '"""', "1979-05-27T07:32:00Z", '["a", "b"]', "-0.0", "0.5"),
)


class Mutator:
    """A mutator for libFuzzer: data, the most bytes that may come out, and a seed, to data.

    Args:
        plain: libFuzzer's own changes to bytes.
    """

    def __init__(self, plain: Bytes) -> None:
        self._plain = plain

    def __call__(self, data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            changed = self._shaped(bytes(data), rng)
            if changed is not None and len(changed) <= most:
                return changed
        return self._plain(data, most)

    def _shaped(self, data: bytes, rng: random.Random) -> bytes | None:
        """The data with one change of its form; None where it has none that is known."""
        if data.startswith(b"PK"):
            return self._zip(data, rng)
        if data[257:262] == b"ustar":
            return self._tar(data, rng)
        if data.startswith((b"{", b"[")):
            return _json(data, rng)
        if data[8:9] == b"{":
            return self._safetensors(data, rng)
        if data.startswith(b"\x93NUMPY"):
            return self._npy(data, rng)
        return _toml(data, rng) if re.search(rb"^\w+ *= ", data, re.MULTILINE) else None

    def _inner(self, data: bytes, rng: random.Random) -> bytes:
        changed = self._shaped(data, rng) if rng.random() < 0.7 else None
        return self._plain(data, len(data) + 64) if changed is None else changed

    def _zip(self, data: bytes, rng: random.Random) -> bytes | None:
        """Members are stored anew, with checksums and sizes that fit."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [(m.filename, archive.read(m)) for m in archive.infolist() if m.file_size <= 1 << 20]
        except Exception:  # whatever a damaged zip makes the library raise
            return None
        if not members:
            return None
        at = rng.randrange(len(members))
        name, raw = members[at]
        match rng.randrange(10):
            case 0:
                del members[at]
            case 1:
                members.append((rng.choice([name, "x", "../x", name + "/", members[0][0]]), raw))
            case 2:
                members[at] = (members[rng.randrange(len(members))][0], raw)
            case _:
                members[at] = (name, self._inner(raw, rng))
        buffer, method = io.BytesIO(), zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        # A name that is there twice is one of the changes.
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:
            for name, raw in members:
                archive.writestr(zipfile.ZipInfo(name), raw, method)
        return buffer.getvalue()

    def _tar(self, data: bytes, rng: random.Random) -> bytes:
        """One field of one header, whose checksum is made to fit."""
        blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
        heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
        at = rng.choice(heads)
        start, end = rng.choice([(0, 100), (100, 108), (124, 136), (156, 157), (157, 257), (257, 265), (345, 500)])
        block, size = bytearray(blocks[at].ljust(512, b"\0")), end - start
        piece = self._plain(bytes(block[start:end]), size)
        if rng.random() < 0.5:
            number = b"%o\0" % rng.choice([0, 1, 511, 512, 2**32])
            piece = rng.choice([number, b"1", b"2", b"5", b"x", b"L", b"g", b"S", b"\xff" * 12])
        block[start:end] = piece[:size].ljust(size, b"\0")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        blocks[at] = bytes(block)
        if rng.random() < 0.1:
            blocks.insert(rng.randrange(len(blocks)), blocks[rng.choice(heads)])
        return b"".join(blocks)

    def _safetensors(self, data: bytes, rng: random.Random) -> bytes | None:
        (length,) = struct.unpack("<Q", data[:8])
        header, values = data[8 : 8 + length], data[8 + length :]
        changed = _json(header, rng) if rng.random() < 0.8 else None
        if changed is None:
            return data[: 8 + length] + self._plain(values, len(values)) if values else None
        return struct.pack("<Q", len(changed)) + changed + values

    def _npy(self, data: bytes, rng: random.Random) -> bytes:
        """Another type or shape in the header, padded to its length."""
        head = data[10 : 10 + int.from_bytes(data[8:10], "little")]
        kinds = (b"<f4", b"<f2", b"<f8", b"|O", b"<U9", b"|V0", b"<c8", b"|u1", b"<i8", b"|b1", b"<U0", b"<M8[s]")
        shapes = (b"()", b"(0,)", b"(1,)", b"(-1,)", b"(4, 0)", b"(9999999999,)", b"(2, 2, 2)", b"(True,)", b"(1.5,)")
        if rng.random() < 0.5:
            changed = re.sub(rb"'descr': '[^']*'", b"'descr': '%s'" % rng.choice(kinds), head)
        else:
            changed = re.sub(rb"\([^)]*\)", lambda _: rng.choice(shapes), head)
        return data[:10] + changed.rstrip().ljust(len(head) - 1)[: len(head) - 1] + b"\n" + data[10 + len(head) :]


def _json(data: bytes, rng: random.Random) -> bytes | None:
    """One value replaced, left out, put twice, exchanged or nested."""
    try:
        tree = json.loads(data)
        places = list(_places(tree))
    except (ValueError, RecursionError):
        return None
    if not places:
        return None
    inside, key = rng.choice(places)
    if rng.random() < 0.02:  # deeper than json.dumps writes, and numbers that it does not
        inside[key] = MARK
        raw = rng.choice([b"[" * 1500 + b"]" * 1500, b'{"a":' * 700 + b"1" + b"}" * 700, b"9" * 500, b"1e999"])
        return json.dumps(tree).encode().replace(json.dumps(MARK).encode(), raw)
    match rng.randrange(8):
        case 0:
            del inside[key]
        case 1:
            other, place = rng.choice(places)
            inside[key] = other[place] if not isinstance(other[place], dict | list) else rng.choice(ODD)
        case 2:
            inside[key] = [inside[key]] * rng.choice([0, 1, 2, 3, 70])
        case 3 if isinstance(inside, dict):
            inside[f"{key}{rng.choice(['', '2', '.'])}"] = inside.pop(key)
        case 4 if isinstance(inside[key], int | float):
            inside[key] = inside[key] * rng.choice([-1, 2, 0.5, 1000]) + rng.choice([-1, 0, 1])
        case _:
            inside[key] = rng.choice(ODD)
    return json.dumps(tree).encode()


def _places(tree: Any) -> Any:
    """Every container and key of a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _toml(data: bytes, rng: random.Random) -> bytes:
    """One line replaced, left out, put twice, or with another value."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    key, equals, _ = lines[at].partition(b"=")
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case _:
            lines[at] = key + equals + b" " + rng.choice(TOML_VALUES).encode()
    return b"\n".join(lines)
