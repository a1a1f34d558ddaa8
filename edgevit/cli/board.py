"""Options of a command that measures, here or on a board: runs, threads, CPUs; where the board is, its Python, time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from edgevit.cli.ranges import RUNS, SECONDS, THREADS

MOST = 4096


class Cpus(click.ParamType[tuple[int, ...]]):
    """CPUs as Linux writes them, numbers and ranges separated by commas, to a sorted tuple."""

    name = "cpus"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: set[int] = set()
        for part in value.split(","):
            numbers = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
            first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
            if not first <= last < MOST:
                self.fail(f"{value!r} is no list of CPUs; give for example 2-3 or 0,2", param, ctx)
            found.update(range(first, last + 1))
        return tuple(sorted(found))


RUN = (
    click.option(
        "--runs",
        type=RUNS,
        default=200,
        show_default=True,
        help="Timed runs per path. p90 needs 64, p95 130, p99 662.",
    ),
    click.option("--threads", type=THREADS, help="Threads of a run (default: the target's)."),
    click.option("--cpus", type=Cpus(), help="Hold the run to these CPUs of the device, for example 2-3 or 0,2."),
)
BOARD = (
    click.option(
        "--device",
        metavar="ssh://[USER@]BOARD[:PORT] | qemu:CPU",
        help="Measure on a board, or on an emulated processor, instead of this machine.",
    ),
    click.option(
        "--python", default="python3", show_default=True, help="Python there, a name or path; machine code needs none."
    ),
    click.option(
        "--timeout", type=SECONDS, default=1800, show_default=True, help="Seconds the measuring may take, here too."
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options `runs`, `threads` and `cpus`."""
    return _with(RUN, command)


def board_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options `device`, `python` and `timeout`."""
    return _with(BOARD, command)


def _with(options: Sequence[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
