"""What is shown of edgevit's messages, on stderr as `edgevit: LINE`, and what of them a file keeps."""

from __future__ import annotations

import logging
import os
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edgevit import __version__
from edgevit.cli import terminal
from edgevit.errors import OutputError
from edgevit.util import atomic, ownership
from edgevit.util.progress import LOGGER, without_bars


class _ToStderr(logging.Handler):
    """Lines on stderr. Errors of the stream are not caught: a full disk, or nobody who reads, ends the command."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        since = f"[{time.monotonic() - self._start:7.2f} s] " if self.level <= logging.DEBUG else ""
        # Escaped here: while bars are drawn, they take the lines and print them past `terminal`.
        click.echo(f"edgevit: {since}{warning}{terminal.escaped(record.getMessage())}", err=True)


class _Silent(logging.Handler):
    """Show nothing, but go on only while somebody waits for the answer."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.listening()


class _ToFile(logging.Handler):
    """Every line in a file, with its time and how much it matters; lines are added to what the file holds."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path = path
        atomic.refuse_inside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Weights or notes are no place for messages; a pipe or a terminal is.
            if path.is_file() and ownership.foreign(path.resolve(), "messages"):
                raise OutputError(
                    f"--log-file {path} holds something else than messages of edgevit, and nothing is added to it; "
                    "choose another file"
                )
            self._stream = os.fdopen(_opened(path), "a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise self._refused(error) from error

    def emit(self, record: logging.LogRecord) -> None:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        lines = terminal.escaped(record.getMessage()).replace("\n", "\n    ")
        try:
            self._stream.write(f"{when} {record.levelname} {lines}\n")
            self._stream.flush()
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what is left was refused, and has been told
            self._stream.close()
        super().close()

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(f"--log-file {self._path} cannot be written: {error.strerror or error}")


def _opened(path: Path) -> int:
    """Open a file to add to it, but wait for nobody: a pipe without a reader is refused."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    os.set_blocking(handle, True)
    return handle


class Messages:
    """What a command was asked to show: `--quiet`, `--verbose`, `--log-file`. One per run of the command line."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.stderr, self._arguments = _ToStderr(), arguments
        self.quiet = self.verbose = False
        self._file: _ToFile | None = None
        self._until_closed = ExitStack()

    def ask(self, *, quiet: bool = False, verbose: bool = False, log_file: Path | None = None) -> None:
        """Take what an option says; they may stand before the command and after it.

        Raises:
            click.UsageError: quiet and verbose at once, or two files.
            OutputError: the file cannot be written.
        """
        if quiet and not self.quiet:
            self._until_closed.enter_context(without_bars())
        self.quiet, self.verbose = self.quiet or quiet, self.verbose or verbose
        if self.quiet and self.verbose:
            raise click.UsageError("--quiet shows less and --verbose more; give one of them.")
        level = logging.WARNING if self.quiet else logging.DEBUG if self.verbose else logging.INFO
        self.stderr.setLevel(level)
        if log_file is not None:
            if self._file is not None:
                raise click.UsageError("--log-file is given twice; one file keeps the messages.")
            self._file = _ToFile(log_file)
            LOGGER.addHandler(self._file)
            self._until_closed.callback(self._file.close)
        LOGGER.setLevel(logging.DEBUG if self.verbose or self._file else logging.INFO)
        if log_file is not None:
            LOGGER.debug("edgevit %s: %s", __version__, shlex.join(self._arguments))

    def failed(self, message: str, error: BaseException) -> None:
        """Keep an error in the file; show where it comes from too, if asked to be verbose."""
        where = "".join(traceback.format_exception(error)).rstrip()
        if self.verbose and not isinstance(error, click.Abort):  # whoever interrupted knows where it comes from
            click.echo(terminal.escaped(where), err=True)
        if self._file is None:
            return
        for level, line in ((logging.ERROR, message), (logging.DEBUG, where)):
            with suppress(OutputError):  # it may be the very error that is told
                self._file.handle(LOGGER.makeRecord(LOGGER.name, level, "", 0, "%s", (line,), None))

    def close(self) -> None:
        """Close the file, and let bars be drawn again."""
        self._until_closed.close()


@contextmanager
def shown(messages: Messages | None = None) -> Iterator[Messages]:
    """Show messages as lines on stderr within this context."""
    messages = messages or Messages()
    handlers, level, propagates = LOGGER.handlers, LOGGER.level, LOGGER.propagate
    LOGGER.handlers, LOGGER.propagate = [messages.stderr], False
    LOGGER.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        LOGGER.handlers, LOGGER.propagate = handlers, propagates
        LOGGER.setLevel(level)
        messages.close()


@contextmanager
def silent(only_if: bool) -> Iterator[None]:
    """Show no message within this context, if asked for: stdout gets one JSON object and stderr stays empty."""
    if not only_if:
        yield
        return
    handlers, level = LOGGER.handlers, LOGGER.level
    kept = [each for each in handlers if isinstance(each, _ToFile)]
    LOGGER.handlers = [_Silent(), *kept]
    LOGGER.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        LOGGER.handlers = handlers
        LOGGER.setLevel(level)


def _asked(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def take(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        messages = ctx.find_object(Messages)
        if value and messages is not None:
            messages.ask(**{name: value})

    return take


OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("-q", "--quiet"), {"is_flag": True, "help": "Show warnings and errors only: no steps, notes or bars."}),
    (
        ("-v", "--verbose"),
        {"is_flag": True, "help": "Show every message with its time, and where an error comes from."},
    ),
    (
        ("--log-file",),
        {"type": click.Path(path_type=Path, dir_okay=False), "help": "Add every message to this file, with its time."},
    ),
)


def take_options(command: click.Command) -> click.Command:
    """Give a command, and those within it, the options of messages; once."""
    known = {parameter.name for parameter in command.params}
    for names, how in OPTIONS:
        name = names[-1].removeprefix("--").replace("-", "_")
        if name not in known:
            option = click.Option(names, **how, expose_value=False, is_eager=True, callback=_asked(name))
            command.params.append(option)
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        take_options(each)
    return command
