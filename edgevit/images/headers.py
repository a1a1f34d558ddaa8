"""What a picture's file has before its pixels, looked over before Pillow reads it in Python, a part or byte at a time.

256 MB that say nothing would take it minutes. `edgevit/bundle/runner.py` has the same steps; a test holds them equal.
"""

from __future__ import annotations

import re

from edgevit.util.limits import IMAGE_PARTS, PPM_HEADER_BYTES, LimitError

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Markers that a length follows: frames, tables, APPn, comments, as Pillow takes them.
SIZED = frozenset({*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xF0), 0xFE})
SCAN = 0xDA
TEXT, BINARY = re.compile(rb"P[123]\s"), re.compile(rb"P[0456fFy]\s")  # how a PPM begins
COMMENT = re.compile(rb"#[^\r\n]*")


def check_header(raw: bytes) -> None:
    """Refuse a JPEG, PNG or PPM whose header would take long to read.

    Raises:
        LimitError: more parts or bytes than allowed; ValueError: a PPM as text, which takes as long a number.
    """
    if raw.startswith((JPEG, PNG)):
        if count_parts(raw, IMAGE_PARTS.value) > IMAGE_PARTS.value:
            raise LimitError(f"it has more parts than allowed for {IMAGE_PARTS.said}")
    elif TEXT.match(raw):
        raise ValueError("a PPM written as text (P1, P2, P3), which takes long to read; save it as PNG or binary PPM")
    elif BINARY.match(raw) and len(raw) > (most := PPM_HEADER_BYTES.value):
        words = COMMENT.sub(b"", raw[:most]).split(maxsplit=3)
        if len(words) < (3 if raw.startswith(b"P4") else 4):
            raise LimitError(f"its header has more bytes than allowed for {PPM_HEADER_BYTES.said}")


def count_parts(raw: bytes, most: int) -> int:
    """Count segments of a JPEG's header, or chunks of a PNG, and bytes that only fill up; not far beyond `most`."""
    count, at = 0, 8 if (png := raw.startswith(PNG)) else 2
    while count <= most and at + 1 < len(raw):
        count += 1
        marker = raw[at + 1]
        if png:
            at += 12 + int.from_bytes(raw[at : at + 4], "big")
        elif raw[at] != 0xFF or marker in (0, 0xFF):
            at += 1
        elif marker == SCAN:
            break
        else:
            at += 2 + (int.from_bytes(raw[at + 2 : at + 4], "big") if marker in SIZED else 0)
    return count
