"""Ctrl-C and SIGTERM while something is written that must not be left in the middle; signals that end a process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def exit_words(code: int) -> str:
    """Return how a process ended: by a signal, whose number is below zero, or with an exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is done; it should be short.

    torch writes checkpoints from C++, which takes what a handler raises for a failed write, and TensorBoard's queue,
    left in the middle of a call, lets its writer wait for ever.
    """
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda received, _: came.append(received))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for received in came[:1]:
        signal.raise_signal(received)
