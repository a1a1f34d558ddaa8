"""What a person sees of a training run: at a terminal a live picture, otherwise about twenty lines in all.

The picture is a progress bar with images/s and time left, the last figures, and one row per block: how many heads and
FFN neurons are left, and for which part of the images their gates open.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgevit.program.spec import BranchKind
from edgevit.util.progress import Say
from edgevit.util.progress import say as to_stderr

LINES = 20  # without a terminal, over the whole run
REFRESHES_PER_S = 2  # a picture takes about 10 ms of a core that trains
WINDOW_S = 120  # long enough to hold a checkpoint or an evaluation among the steps
_BAR = 8  # columns of a bar in the table, fewer where the terminal is narrow
_TABLE_TEXT = 56  # columns of the table without its four bars
# What the log's columns are called where a person reads them.
NAMES = {
    "rate": "lr",
    "gradient": "grad norm",
    "price": "MAC penalty",
    "macs": "MACs",
    "macs_budget": "MAC budget",
    "static_macs": "static MACs",
}
_UNITS: dict[BranchKind, str] = {"mhsa": "heads", "ffn": "neurons"}


@dataclass(frozen=True, kw_only=True)
class BranchState:
    """A branch at one step: units left, and the part of the samples that its gate opens for (None: it has no gate).

    `name` is the branch's, `b00_mhsa`: what precedes the underscore names its block.
    """

    name: str
    kind: BranchKind
    units: int
    units_total: int
    open_rate: float | None


class Show:
    """Shows one stage of training; a context manager.

    Args:
        total_steps: of the stage.
        start: steps that were done before, by the run that this one resumes.
        description: what is going on, in a few words.
        say: prints a line; used where stderr is no terminal.
        console: where the picture goes; stderr by default.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start: int = 0,
        description: str,
        say: Say = to_stderr,
        console: Console | None = None,
    ) -> None:
        self._total, self._step, self._description, self._say = total_steps, start, description, say
        self._times = deque([(time.monotonic(), start)])
        self._images_per_s = 0.0
        self._row: Mapping[str, float | None] = {}
        self._branches: tuple[BranchState, ...] = ()
        self._live: Live | None = None
        terminal = sys.stderr.isatty() if console is None else console.is_terminal
        self._console = console or Console(stderr=True)
        if terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._picture,
                console=self._console,
                transient=True,
                refresh_per_second=REFRESHES_PER_S,
                redirect_stdout=sys.stdout.isatty(),  # what a script reads from stdout stays there
            )

    def update(
        self, step: int, images_per_s: float, row: Mapping[str, float | None], branches: Sequence[BranchState]
    ) -> None:
        """Show that `step` steps are done, with the last figures and the state of every branch."""
        news = step * LINES // self._total > self._step * LINES // self._total
        self._times.append((time.monotonic(), step))
        while self._times[1][0] < self._times[-1][0] - WINDOW_S:
            self._times.popleft()
        self._step, self._images_per_s, self._branches = step, images_per_s, tuple(branches)
        self._row = {NAMES.get(name, name): value for name, value in row.items()}
        if self._live is None and news:
            self._say(self._line())

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _time_left(self) -> str:
        (began, first), (now, last) = self._times[0], self._times[-1]
        return _duration((now - began) / (last - first) * (self._total - last)) if last > first else "?"

    def _line(self) -> str:
        head = f"{self._description}: step {self._step} of {self._total} ({self._step / self._total:.0%})"
        speed = f"{_speed(self._images_per_s)}, {self._time_left()} left"
        figures = [f"{name} {_number(value)}" for name, value in self._row.items() if value is not None]
        return ", ".join([head, speed, *figures, *_summary(self._branches)])

    def _picture(self) -> RenderableType:
        """Return what Live draws; called in Live's thread."""
        top = Table.grid(padding=(0, 2), expand=True)
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        for _ in range(3):
            top.add_column(no_wrap=True, justify="right")
        top.add_row(
            Text(self._description, "bold"),
            ProgressBar(total=max(self._total, 1), completed=self._step),
            f"{self._step}/{self._total}",
            _speed(self._images_per_s),
            f"{self._time_left()} left",
        )
        parts: list[RenderableType] = [top]
        if self._row:
            figures = [Text.assemble((f"{name} ", "dim"), _number(value)) for name, value in self._row.items()]
            parts.append(Columns(figures, padding=(0, 3)))
        if self._branches:
            parts.append(_table(self._branches, max(0, min(_BAR, (self._console.width - _TABLE_TEXT) // 4))))
        return Group(*parts)


def _table(branches: Sequence[BranchState], bar: int) -> Table:
    """Return one row per block, for each kind of branch: bar, units left / total, bar, gate open."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("block", no_wrap=True)
    blocks: dict[str, dict[BranchKind, BranchState]] = {}
    for branch in branches:
        blocks.setdefault(branch.name.split("_")[0], {})[branch.kind] = branch
    for title in _UNITS.values():
        for heading in (title, "gate open"):
            table.add_column(width=bar)
            table.add_column(heading, justify="right", no_wrap=True)
    for name, pair in blocks.items():
        table.add_row(Text(name), *(cell for kind in _UNITS for cell in _cells(pair.get(kind), bar)))
    return table


def _cells(branch: BranchState | None, bar: int) -> Iterator[RenderableType]:
    if branch is None:
        yield from ("", "", "", "")
        return
    gone = not branch.units
    yield _bar(branch.units / max(branch.units_total, 1), bar, "cyan")
    yield Text(f"{branch.units}/{branch.units_total}", "dim" if gone else "")
    if gone or branch.open_rate is None:
        yield from ("", Text("removed" if gone else "always", "dim"))
    else:
        yield from (_bar(branch.open_rate, bar, "green"), f"{branch.open_rate:.0%}")


def _bar(part: float, width: int, colour: str) -> RenderableType:
    if not width:
        return ""
    return ProgressBar(total=1, completed=part, width=width, complete_style=colour, finished_style=colour)


def _summary(branches: Sequence[BranchState]) -> list[str]:
    """Return the table in a few words: units left of each kind, and how many branches run on average."""
    said = []
    for kind, title in _UNITS.items():
        of_kind = [branch for branch in branches if branch.kind == kind]
        if of_kind:
            said.append(f"{title} {sum(b.units for b in of_kind)}/{sum(b.units_total for b in of_kind)}")
    if branches:
        ran = sum((1.0 if b.open_rate is None else b.open_rate) for b in branches if b.units)
        said.append(f"{ran:.1f} of {len(branches)} branches run")
    return said


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:.{0 if images_per_s >= 10 else 2}f} images/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
