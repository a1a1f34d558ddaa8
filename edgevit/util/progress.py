"""Tell a person what is going on: progress bars (at a terminal only), and messages through `logging`.

Messages go to the logger `edgevit`: steps as INFO, which nobody sees unless logging is set up for them, warnings as
WARNING, and what only somebody who looks for a fault wants as DEBUG. The command line shows them on stderr.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
Say = Callable[[str], None]
LOGGER = logging.getLogger("edgevit")
WARNING = "warning: "
_BARS = [True]  # whether bars may be drawn, the innermost context last
_OVERALL: list[Overall] = []  # the work in progress that is told as a whole


def drawn() -> bool:
    """Return whether a person sees bars: standard error is a terminal, and nobody asked for quiet."""
    return _BARS[-1] and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def without_bars() -> Iterator[None]:
    """Draw no bar within this context."""
    _BARS.append(False)
    try:
        yield
    finally:
        _BARS.pop()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Generator[T]:
    """Yield from `iterable` under a progress bar that vanishes when done; `total` where the iterable has no length."""
    if not drawn():
        yield from iterable
        return
    if _OVERALL and _OVERALL[-1].bars is not None:
        yield from _OVERALL[-1].within(iterable, description, total)
        return
    from rich.progress import track as rich_track

    yield from rich_track(iterable, description, total=total, console=_console(), transient=True)


def _console() -> Any:
    from rich.console import Console

    return Console(file=getattr(sys.stderr, "styled", sys.stderr))  # a command escapes what it does not draw itself


class Overall(logging.Handler):
    """A bar over the stages of a long piece of work, with the time left: it follows the messages that begin them.

    The stages' shares of the time are typical ones, of those that are left out none; how far a stage has come is known
    where it has a bar of its own.

    Args:
        title: what is done.
        shares: how a stage's first message begins -> its typical share of the whole time, in order.
    """

    def __init__(self, title: str, shares: Mapping[str, float]) -> None:
        super().__init__()
        self.bars: Progress | None = None
        self._title, self._names, self._shares = title, tuple(shares), list(shares.values())
        self._stage, self._inside, self._start, self._task = -1, 0.0, time.monotonic(), None

    _task: TaskID | None

    def emit(self, record: logging.LogRecord) -> None:
        """Go on to the stage that this message begins; stages never go back."""
        line = record.getMessage()
        for index, name in enumerate(self._names):
            if index > self._stage and line.startswith(name):
                for passed in range(self._stage + 1, index):
                    self._shares[passed] = 0.0  # not part of this work
                self._stage, self._inside = index, 0.0
                self.show()

    @property
    def done(self) -> float:
        """Return the fraction 0..1 of the time that is behind."""
        if self._stage < 0:
            return 0.0
        behind = sum(self._shares[: self._stage]) + self._inside * self._shares[self._stage]
        return behind / sum(self._shares)

    def left(self) -> str:
        """Return the time left in words; nothing while too little is behind to tell."""
        done, taken = self.done, time.monotonic() - self._start
        if done < 0.05:
            return ""
        seconds = taken * (1 - done) / done
        return "seconds left" if seconds < 10 else f"about {clock(seconds)} left"

    def show(self) -> None:
        """Draw the bar where it stands now."""
        if self.bars is None or self._task is None:
            return
        words = self._title
        if self._stage >= 0:
            wanted = [share > 0 for share in self._shares]
            number = sum(wanted[: self._stage + 1])
            words += f": {self._names[self._stage].lower()}, stage {number} of {sum(wanted)}"
        self.bars.update(self._task, completed=self.done, description=words, left=self.left())

    def within(self, iterable: Iterable[T], description: str, total: int | None) -> Generator[T]:
        """Yield under a bar of its own below the one of the whole, which moves with it."""
        assert self.bars is not None
        count = total if total is not None else len(iterable) if isinstance(iterable, Sized) else None
        task = self.bars.add_task(description, total=count, left="")
        try:
            for index, item in enumerate(iterable):
                yield item
                self._inside = max(self._inside, (index + 1) / count if count else 0.0)
                self.bars.advance(task)
                self.show()
        finally:
            self.bars.remove_task(task)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw within this context."""
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
        with Progress(*columns, console=_console(), transient=True) as self.bars:
            self._task = self.bars.add_task(self._title, total=1.0, left="")
            self.show()
            try:
                yield
            finally:
                self.bars = None


@contextmanager
def overall(title: str, shares: Mapping[str, float]) -> Iterator[Overall]:
    """Tell of the work within this context as a whole: see `Overall`. Nothing is drawn where nobody sees bars."""
    whole = Overall(title, shares)
    LOGGER.addHandler(whole)
    _OVERALL.append(whole)
    try:
        if drawn():
            with whole.drawing():
                yield whole
        else:
            yield whole
    finally:
        _OVERALL.remove(whole)
        LOGGER.removeHandler(whole)


def clock(seconds: float) -> str:
    """Return a length of time as people say it: 40 s, 3 min, 2 h 10 min."""
    if seconds < 55:
        return f"{max(1, round(seconds / 5) * 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def say(line: str) -> None:
    """Log a step of the work; a line that begins with "warning: " is logged as a warning."""
    if line.startswith(WARNING):
        warn(line.removeprefix(WARNING))
    else:
        LOGGER.info("%s", line)


def note(line: str) -> None:
    """Log what a person may want to know of what was understood."""
    say(f"note: {line}")


def warn(line: str) -> None:
    """Log what a person should look at before trusting a result."""
    LOGGER.warning("%s", line)


def detail(line: str) -> None:
    """Log what only somebody who looks for a fault wants to know."""
    LOGGER.debug("%s", line)
