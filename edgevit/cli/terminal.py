"""What a command prints goes through here: no file steers a terminal, and no alphabet or closed pipe is a fault."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import os
import re
import select
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from edgevit.errors import OutputError

T = TypeVar("T")
CLOSED = 141  # 128 + SIGPIPE, as shells report it
# C0 but tab and newline, DEL, C1, and what changes the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# What the report's signs are where the terminal has ASCII only.
SIGNS = str.maketrans({"–": "-", "×": "x", "≤": "<=", "±": "+-", "µ": "u", "✓": "ok", "✗": "FAILED", "°": " deg "})
HANDLER = "edgevit.escape"
WIDTH = 100  # characters of a line of a summary


def escaped(text: str) -> str:
    r"""Return the text with control characters written out as `\u001b`, which JSON reads back as the same character."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def fitted(line: str, indent: int, width: int = WIDTH) -> str:
    """Return a line of a summary as lines that fit, what follows the first indented; no word is broken or lost."""
    following = " " * indent
    lines = textwrap.wrap(
        line, width, subsequent_indent=following, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return "\n".join(lines)


def plain(value: T) -> T:
    """Return the same value, a dataclass or a collection, with every string in it escaped."""
    return _plain(value)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _unwritable(error: UnicodeError) -> tuple[str, int]:
    r"""Return characters that an encoding lacks as `\u00e9`, as JSON writes them, not as `\xe9`."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


codecs.register_error(HANDLER, _unwritable)


class Terminal:
    """A stream as a command sees it. Without a `buffer`, so that nothing writes past it.

    Args:
        inner: what is written to.
        name: for the message when it refuses; None: what it refuses is lost, as there is nowhere to say so.
        styled: let escape sequences pass; for text whose strings went through `plain`.
    """

    def __init__(self, inner: TextIO, name: str | None, *, styled: bool = False) -> None:
        self._inner, self._name, self._styled = inner, name, styled

    @property
    def encoding(self) -> str:
        return self._inner.encoding or "utf-8"

    @property
    def errors(self) -> str | None:
        return self._inner.errors

    @property
    def styled(self) -> Terminal:
        """Return the same stream for text that brings its own escape sequences."""
        return Terminal(self._inner, self._name, styled=True)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._inner.isatty()

    def fileno(self) -> int:
        return self._inner.fileno()

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"a terminal takes text, got {type(text).__name__}")
        if not text:  # click asks so whether this is a stream; a full disk would answer
            return 0
        if self._styled and not self.encoding.lower().startswith("utf"):
            text = text.translate(SIGNS)
        shown = text if self._styled else escaped(text)
        with self._guarded():
            self._inner.write(shown.encode(self.encoding, HANDLER).decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with self._guarded():
            self._inner.flush()

    def close(self) -> None:
        """Nothing: the stream stays its owner's. Libraries that log close what they once took for standard error."""

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """End at once, and without a word, when nobody reads any more; refuse in our words what a disk refuses."""
        try:
            yield
        except BrokenPipeError:
            _abandon(self._inner)
            raise SystemExit(CLOSED) from None
        except OSError as error:
            _abandon(self._inner)
            if self._name is not None:
                raise OutputError(f"cannot write to {self._name}: {error.strerror or error}") from error


@contextmanager
def guarded() -> Iterator[None]:
    """Within this context `sys.stdout` and `sys.stderr` are Terminals.

    Raises:
        SystemExit: with CLOSED, when nobody reads any more.
        OutputError: standard output goes to a file that cannot be written.
    """
    out, err = sys.stdout, sys.stderr
    if isinstance(out, Terminal):  # within another command
        yield
        return
    sys.stdout = _terminal(out, "standard output")
    sys.stderr = _terminal(err, None)
    try:
        listening()
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def listening() -> None:
    """End with CLOSED if nobody reads standard output any more: what would be told is worth nothing."""
    stream = sys.stdout
    try:
        descriptor, poll = stream.fileno(), select.poll()
    except (AttributeError, OSError, ValueError):  # closed from the start, captured, or not this kind of system
        return
    poll.register(descriptor, 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        _abandon(stream)
        raise SystemExit(CLOSED)


def _terminal(stream: TextIO | None, name: str | None) -> Any:
    """Return none stays None: the shell closed the stream, and then nothing is written."""
    return None if stream is None else Terminal(stream, name)


def _abandon(stream: TextIO) -> None:
    """Send what is left in a stream nowhere, so that Python does not fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
