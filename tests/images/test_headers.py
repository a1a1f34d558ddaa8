"""Headers that would take minutes to read are refused, here and by a bundle's own runner."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from edgevit.bundle import runner
from edgevit.images import headers
from edgevit.images.image_set import decode
from edgevit.util.limits import IMAGE_PARTS
from tests.pictures import picture_bytes

MANY = IMAGE_PARTS.value + 1


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def jpeg(more: bytes) -> bytes:
    whole = picture_bytes(kind="JPEG")
    return whole[:2] + more + whole[2:]


def png(more: bytes) -> bytes:
    whole = picture_bytes(kind="PNG")
    return whole[:33] + more + whole[33:]


@pytest.mark.parametrize("check", [headers.check_header, runner.check_header])
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        pytest.param(jpeg(b"\xff" * MANY), "parts", id="fills up"),
        pytest.param(jpeg(b"\xff\x00" * MANY), "parts", id="escaped"),
        pytest.param(jpeg(bytes(MANY)), "parts", id="zeros"),
        pytest.param(jpeg(b"\xff\xfe\x00\x02" * MANY), "parts", id="comments"),
        pytest.param(jpeg(b"\xff\xd0" * MANY), "parts", id="without a length"),
        pytest.param(jpeg(b"\xff\xf0\xff\xff" + b"\xff" * MANY), "parts", id="behind a marker without a length"),
        pytest.param(png(chunk(b"tEXt", b"a\0") * MANY), "parts", id="chunks"),
        pytest.param(png(chunk(b"IDAT", b"") * MANY), "parts", id="empty pixels"),
        pytest.param(b"P6 #" + b"x" * 5000 + b"\n3 2 255\n" + bytes(18), "4096 bytes", id="a comment"),
        pytest.param(b"P6" + b" " * 5000 + b"3 2 255\n" + bytes(18), "4096 bytes", id="spaces"),
        pytest.param(b"P4 3 #" + b"x" * 5000 + b"\n2\n" + bytes(2), "4096 bytes", id="a bitmap"),
        pytest.param(b"P3 2 1 255\n1 2 3 4 5 6\n", "written as text", id="text"),
    ],
)
def test_what_says_nothing_for_long_is_refused(check: Callable[[bytes], None], raw: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(raw)


@pytest.mark.parametrize("check", [headers.check_header, runner.check_header])
def test_usual_headers_pass(check: Callable[[bytes], None]) -> None:
    for raw in (
        jpeg(b"\xff" * 100 + (b"\xff\xe2\xff\xff" + bytes(65_533)) * 20),
        png(chunk(b"tEXt", b"a\0") * 1000),
        picture_bytes(kind="PPM") + bytes(5000),
        b"P4 300 300\n" + bytes(11_400),
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n\0",
    ):
        check(raw)
    assert headers.count_parts(jpeg(b""), MANY) == runner.count_parts(jpeg(b""), MANY) < 12
    assert decode(jpeg(b"\xff" * 100)).size == decode(picture_bytes(kind="JPEG")).size
