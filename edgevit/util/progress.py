"""Tell a person what is going on: progress bars (at a terminal only), and messages through `logging`.

Messages go to the logger `edgevit`: steps as INFO, which nobody sees unless logging is set up for them, and warnings
as WARNING. The command line shows both on stderr.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]
LOGGER = logging.getLogger("edgevit")
WARNING = "warning: "


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
    """Log a step of the work; a line that begins with "warning: " is logged as a warning."""
    if line.startswith(WARNING):
        warn(line.removeprefix(WARNING))
    else:
        LOGGER.info("%s", line)


def warn(line: str) -> None:
    """Log what a person should look at before trusting a result."""
    LOGGER.warning("%s", line)
