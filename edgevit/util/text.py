"""Text that people write: UTF-8 whatever its line ends, with or without a byte order mark; else refused in words."""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevit.util.limits import (
    DOCUMENT_DEPTH,
    INTEGER_BITS,
    LINE_CHARACTERS,
    TEXT_BYTES,
    TEXT_LINES,
    TOML_VALUES,
    Limit,
    LimitError,
    read_regular,
)

OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins like it
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Strings and comments of TOML, also unfinished ones: each alternative takes what it begins, so nothing is tried twice.
TOML_TEXT = re.compile(
    r'"""(?:\\.|[^\\"]|"(?!""))*+(?:"{3,5})?'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5})?"
    r'|"(?:\\.|[^"\\\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|\#[^\n]*+",
    re.DOTALL,
)
TOML_SIGNS = re.compile(r"[\[\]{},=]")
SHOWN_FAULTS, SHOWN_CHARACTERS = 20, 400


def read_text(path: Path, limit: Limit = TEXT_BYTES) -> str:
    """Return the text of a regular file, without a byte order mark, every line end a line feed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8; the message says what it is and what to do.
    """
    return decode_text(read_regular(path, limit))


def decode_text(raw: bytes) -> str:
    """Decode bytes as `read_text` reads them; raises ValueError."""
    if len(raw) > TEXT_BYTES.value:
        raise LimitError(f"it has {len(raw)} bytes, allowed for {TEXT_BYTES.of}: {TEXT_BYTES}")
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
    """Return one item per line, without the space around it; empty lines at the end do not count.

    Raises:
        OSError: it cannot be read.
        ValueError: see `read_text`; or a line is too long, or there are too many; or one before the last item is empty:
            were the items counted, they would shift.
    """
    text = read_text(path).rstrip()
    if text.count("\n") >= TEXT_LINES.value:
        raise LimitError(f"it has {text.count(chr(10)) + 1} lines, allowed: {TEXT_LINES}")
    lines = tuple(line.strip() for line in text.split("\n"))
    long = [number for number, line in enumerate(lines, start=1) if len(line) > LINE_CHARACTERS.value]
    if long:
        raise LimitError(f"line {long[0]} has {len(lines[long[0] - 1])} characters, allowed: {LINE_CHARACTERS}")
    empty = [number for number, line in enumerate(lines, start=1) if not line]
    if empty and len(lines) > 1:
        raise ValueError(f"line {empty[0]} is empty; every line must hold one item")
    return tuple(filter(None, lines))


def read_toml(path: Path, limit: Limit) -> dict[str, Any]:
    """The tables of a TOML file, looked over before it is parsed: the parser is recursive, and slow for long keys.

    Raises:
        OSError: it cannot be read.
        ValueError: see `read_text`; or it is no TOML, or larger, deeper, or of larger numbers than allowed.
    """
    text = read_text(path, limit)
    _check_toml(TOML_TEXT.sub("s", text))
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise LimitError(f"it is nested too deep, allowed: {DOCUMENT_DEPTH}") from None
    _check_integers(data)
    return data


def listed(faults: Sequence[str]) -> str:
    """Return faults of a file as lines of a message, of which nobody reads thousands."""
    lines = [fault if len(fault) <= SHOWN_CHARACTERS else f"{fault[:SHOWN_CHARACTERS]} ..." for fault in faults]
    more = [f"  ... and {len(lines) - SHOWN_FAULTS} more"] if len(lines) > SHOWN_FAULTS else []
    return "\n".join([*(f"  - {line}" for line in lines[:SHOWN_FAULTS]), *more])


def _check_toml(bare: str) -> None:
    """Look over TOML without its strings and comments."""
    signs = TOML_SIGNS.findall(bare)
    if len(signs) > TOML_VALUES.value:
        raise LimitError(f"it has {len(signs)} {TOML_VALUES.of}, allowed: {TOML_VALUES}")
    depth = deepest = 0
    for sign in signs:
        depth = depth + 1 if sign in "[{" else max(0, depth - 1) if sign in "]}" else depth
        deepest = max(deepest, depth)
    dots = max(piece.count(".") for piece in re.split(r"[\n,=\[\]{}]", bare))
    if max(deepest, dots) > DOCUMENT_DEPTH.value:
        kind = "lists and tables are" if deepest > dots else "the parts of a key are"
        raise LimitError(f"{kind} nested {max(deepest, dots)} deep, allowed: {DOCUMENT_DEPTH}")


def _check_integers(data: Any) -> None:
    """Refuse what TOML refuses: integers that 64 bits do not hold."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise LimitError(f"it holds an integer of {value.bit_length()} bits, allowed: {INTEGER_BITS} with the sign")


def printable(said: str) -> str:
    """Return the last line of what another machine said, short and without control characters."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else "it said nothing"
