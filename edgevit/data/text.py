"""Text that people write: UTF-8 whatever its line ends, with or without a byte order mark; else refused in words."""

from __future__ import annotations

import codecs
from pathlib import Path

OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins like it
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark, every line end a line feed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8; the message says what it is and what to do.
    """
    return decode_text(path.read_bytes())


def decode_text(raw: bytes) -> str:
    """Bytes as `read_text` reads them; raises ValueError."""
    for mark, name in OTHER_MARKS.items():
        if raw.startswith(mark):
            raise ValueError(f"it is {name} text; save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} ({raw[error.start]:#04x}) is no UTF-8, perhaps Latin-1 or Windows-1252; save the text "
            "as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError("it holds NUL characters: no text, or UTF-16 without a mark; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> tuple[str, ...]:
    """One item per line, without the space around it; empty lines at the end do not count.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or a line before the last item is empty: were the items counted, they would shift.
    """
    lines = tuple(line.strip() for line in read_text(path).rstrip().split("\n"))
    empty = [number for number, line in enumerate(lines, start=1) if not line]
    if empty and len(lines) > 1:
        raise ValueError(f"line {empty[0]} is empty; every line must hold one item")
    return tuple(filter(None, lines))
