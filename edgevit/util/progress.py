"""What a person is told on stderr: progress bars (at a terminal only) and single lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Generator[T]:
    """Yield from `iterable` under a progress bar that vanishes when done; `total` where the iterable has no length."""
    if not sys.stderr.isatty():
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(file=getattr(sys.stderr, "styled", sys.stderr))  # a command escapes what it does not draw itself
    yield from rich_track(iterable, description, total=total, console=console, transient=True)


def say(line: str) -> None:
    """One line for a person, on stderr, so that stdout stays what a script reads."""
    print(line, file=sys.stderr, flush=True)
