"""Show on stderr what edgevit logs: `edgevit: LINE`, and `edgevit: warning: LINE`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from edgevit.cli import terminal
from edgevit.util.progress import LOGGER


class _ToStderr(logging.Handler):
    """Lines on stderr. Errors of the stream are not caught: a full disk, or nobody who reads, ends the command."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(f"edgevit: {warning}{record.getMessage()}", err=True)


class _Silent(logging.Handler):
    """Show nothing, but go on only while somebody waits for the answer."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.listening()


@contextmanager
def shown() -> Iterator[None]:
    """Show messages as lines on stderr within this context."""
    with _handled_by(_ToStderr()):
        yield


@contextmanager
def silent(only_if: bool) -> Iterator[None]:
    """Show no message within this context, if asked for: stdout gets one JSON object and stderr stays empty."""
    if not only_if:
        yield
        return
    with _handled_by(_Silent()):
        yield


@contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    handlers, level, propagates = LOGGER.handlers, LOGGER.level, LOGGER.propagate
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.handlers, LOGGER.propagate = handlers, propagates
        LOGGER.setLevel(level)
