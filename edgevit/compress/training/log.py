"""The log of a training run: metrics.csv, and the same for TensorBoard where it is installed.

A run that was killed and goes on from step N first loses what it had logged from N on, so that its finished CSV is the
one of an undisturbed run.
"""

from __future__ import annotations

import csv
import functools
import io
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgevit.errors import OutputError, TrainingError
from edgevit.util import strict_json
from edgevit.util.progress import Say
from edgevit.util.progress import say as to_stderr
from edgevit.util.signals import signals_wait

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CSV_NAME = "metrics.csv"
TENSORBOARD_NAME = "tensorboard"
STEP = "step"


class Log:
    """Appends rows to `folder`/metrics.csv and scalars to `folder`/tensorboard; a context manager.

    Args:
        folder: made if it is not there.
        resume_at: the step that comes next: rows from there on are cut away first, so 0 starts a new log.
        say: told, once, if TensorBoard is not installed.

    Raises:
        OutputError: the disk refuses.
        TrainingError: metrics.csv is not one of these logs.
    """

    def __init__(self, folder: Path, *, resume_at: int = 0, say: Say = to_stderr) -> None:
        self._path = folder / CSV_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._columns, self._last = _cut(self._path, resume_at)
            self._from_file = bool(self._columns)
            self._board = _open_board(folder / TENSORBOARD_NAME, resume_at, say)
            self._file = self._path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise self._refusal(error) from error

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Append one row and flush it. None is what was not measured at this step: an empty cell.

        Raises:
            OutputError: the disk refuses.
            TrainingError: the columns of the log that is resumed are others.
            ValueError: the columns differ from those of the first row, or the step does not come after the last.
        """
        self._check(step, tuple(row))
        header = "" if self._columns else _line((STEP, *row))
        self._columns = self._columns or tuple(row)
        self._last = step
        line = header + _line((str(step), *(_cell(row[name]) for name in self._columns)))
        try:
            with signals_wait():
                self._append(line, step, row)
        except OSError as error:
            raise self._refusal(error) from error

    def _append(self, line: str, step: int, row: Mapping[str, float | None]) -> None:
        self._file.write(line)
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if value is not None:
                    self._board.add_scalar(name, float(value), step)
            self._board.flush()

    def close(self) -> None:
        """Close both logs."""
        try:
            with signals_wait():
                try:
                    self._file.close()
                finally:
                    if self._board is not None:
                        self._board.close()
        except OSError as error:
            raise self._refusal(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, step: int, columns: tuple[str, ...]) -> None:
        if self._columns and set(columns) != set(self._columns):
            text = (
                f"{self._path} has the columns {', '.join(self._columns)}; got the columns {', '.join(columns)}; "
                "every row of a log has the same ones"
            )
            if self._from_file:
                raise TrainingError(f"{text}: move that file away, then go on with --resume")
            raise ValueError(text)
        if not columns or step <= self._last:
            raise ValueError(f"{self._path}: step {step} is empty or does not come after step {self._last}")

    def _refusal(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write the log {self._path.parent}: {error.strerror or error}; make room or allow writing there, "
            "then go on with --resume"
        )


def _cut(path: Path, resume_at: int) -> tuple[tuple[str, ...], int]:
    """Cut away a torn last line and the rows from `resume_at` on; the columns and the last step (-1: none) left."""
    if not path.exists():
        return (), -1
    content = path.read_bytes()
    # Only a line that was written whole ends in a newline.
    header, *rows = content[: content.rfind(b"\n") + 1].splitlines(keepends=True) if resume_at else [b""]
    steps = [_step(path, number, row) for number, row in enumerate(rows, start=2)]
    kept = [row for row, step in zip(rows, steps, strict=True) if step < resume_at]
    left = header + b"".join(kept) if kept else b""
    if left != content:
        strict_json.write_atomic(path, left)
    if not kept:
        return (), -1
    first, *columns = next(csv.reader([header.decode("utf-8", "replace")]))
    if first != STEP:
        raise _foreign(path, 1, f"its first column is {first!r} instead of {STEP!r}")
    return tuple(columns), max(step for step in steps if step < resume_at)


def _step(path: Path, number: int, row: bytes) -> int:
    cell = row.split(b",", 1)[0]
    if not cell.isdigit():
        raise _foreign(path, number, f"{cell.decode('utf-8', 'replace')!r} is no step")
    return int(cell)


def _foreign(path: Path, number: int, reason: str) -> TrainingError:
    return TrainingError(
        f"{path}, line {number}: {reason}; it is not the log of this run: move that file away, then go on with --resume"
    )


def _line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _cell(value: float | None) -> str:
    """Return the shortest text that reads back as the same number."""
    return "" if value is None else str(value) if isinstance(value, int) else repr(float(value))


@functools.cache
def _silence_writer() -> None:
    """Print no traceback for TensorBoard's writing thread: what it raises is raised again where the log is flushed."""
    told = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__module__.partition(".")[0] != "tensorboard":
            told(failed)

    threading.excepthook = hook


def _open_board(folder: Path, resume_at: int, say: Say) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say(f"TensorBoard is not installed (pip install tensorboard): the log is {CSV_NAME} alone")
        return None
    _silence_writer()
    # Events from this step on, written before a crash, are hidden.
    return SummaryWriter(str(folder), purge_step=resume_at)
