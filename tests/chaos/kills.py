"""End commands by signals at random moments and at every rename: what is left is the old or the new, each whole.

Another start then succeeds, and leaves nothing of what was ended. SIGKILL hits the command alone, and what it had
started goes on; SIGTERM and SIGINT let it clean up, so that nothing may be left even before another start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import SkipError
from tests.chaos import commands
from tests.chaos.commands import Command, strays
from tests.chaos.run import Ended, ended_at_rename, forked

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# By a signal before the command listens to it, as asked for, or done before the signal came.
CODES = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (-15, 143, 0), signal.SIGINT: (130, 0)}
# On a busy machine the times of a tiny model may not show that it skips; that is no matter of signals.
BUSY, STARTS = SkipError.exit_code, 5
MOST = 500
RANDOM, RENAMES = "random", "every rename"


@dataclass(frozen=True, kw_only=True)
class Killed:
    """How often a command was ended by a signal; `ended` counts those that came before it was done."""

    command: str
    signal: str
    moments: str
    tried: int
    ended: int
    faults: tuple[str, ...]


class Victim:
    """A command in a folder of its own, with what it writes when nothing goes wrong."""

    def __init__(self, command: Command, root: Path) -> None:
        self.command, self.root = command, root
        self._kept = root / "kept"
        if command.old:
            self.must(self.run(1))
            shutil.copytree(root / commands.OUT, self._kept, symlinks=True)
        begun = time.monotonic()
        self.must(self.run(2))
        self.seconds = time.monotonic() - begun
        if command.name == "compress":
            shutil.copytree(root / commands.OUT / "run", root / commands.GIVEN / "trained")
        assert self._all() == {2} and not strays(root, command.left), strays(root, command.left)

    def run(self, version: int = 2, **options: Any) -> Ended:
        root = self.root
        return forked(
            self.command.arguments(root, version),
            root,
            enter=lambda: self.command.enter(root, version),
            **options,
        )

    def try_at(self, number: signal.Signals, /, **how: Any) -> tuple[bool, str]:
        """Whether it was ended before it was done, and what was wrong then or after another start."""
        commands.empty(self.root)
        self.restore()
        ended = self.run(**how)
        try:
            self._check(number, ended)
        except Exception as error:  # whatever is wrong with what is there
            return ended.code != 0, f"{type(error).__name__}: {error}"
        return ended.code != 0, ""

    def restore(self) -> None:
        """Put what is to be replaced there, if anything is."""
        if self.command.old:
            shutil.copytree(self._kept, self.root / commands.OUT, symlinks=True, dirs_exist_ok=True)

    def _check(self, number: signal.Signals, ended: Ended) -> None:
        assert ended.code in (*CODES[number], BUSY) and not ended.crashed, f"{ended.code}: {ended.said[-500:]}"
        before = self.command.versions(self.root)  # each whole
        if number != signal.SIGKILL:
            assert all(len(together) == 1 for together in before), f"versions {before}"
            assert not strays(self.root, self.command.left), f"left {strays(self.root, self.command.left)}"
        self.must(self._again())
        assert self._all() == {2}, f"versions {self._all()} after another start"
        assert not strays(self.root, self.command.left), f"left {strays(self.root, self.command.left)} after a start"

    def _again(self) -> Ended:
        """Start it once more, until it was not too busy a machine to verify it."""
        ended = self.run()
        for _ in range(STARTS):
            if ended.code != BUSY:
                break
            ended = self.run()
        return ended

    def _all(self) -> set[int | None]:
        return set[int | None]().union(*self.command.versions(self.root))

    def must(self, ended: Ended) -> None:
        """Raise AssertionError unless a start without a signal succeeded."""
        assert ended.code == 0, f"another start ended with {ended.code}: {ended.said[-500:]}"


def at_random(
    victim: Victim, number: signal.Signals, moments: int, *, seed: int = 0, begun: Killed | None = None
) -> Iterator[Killed]:
    """End it at random moments of the time that it takes; yields the count so far, after those of `begun`."""
    rng = random.Random(f"{seed} {victim.command.name} {number}")
    shares = [rng.random() for _ in range(moments)]
    row = begun or _none(victim, number, RANDOM)
    for share in shares[row.tried :]:
        row = _with(row, *victim.try_at(number, after_s=share * victim.seconds, number=number))
        yield row


def at_renames(
    victim: Victim, number: signal.Signals, most: int = MOST, *, begun: Killed | None = None
) -> Iterator[Killed]:
    """End it before each of its renames, and after each exchange; with `most` at evenly chosen ones."""
    count = victim.root / "count"

    def within(moment: int) -> Callable[[], contextlib.AbstractContextManager[object]]:
        return lambda: ended_at_rename(moment, number, count)

    commands.empty(victim.root)
    victim.restore()
    victim.must(victim.run(within=within(1 << 30)))
    renames = json.loads(count.read_text())
    chosen = list(range(renames)) if renames <= most else sorted({i * renames // most for i in range(most)})
    row = begun or _none(victim, number, RENAMES)
    for moment in chosen[row.tried :]:
        row = _with(row, *victim.try_at(number, within=within(moment)))
        yield row


def _none(victim: Victim, number: signal.Signals, moments: str) -> Killed:
    return Killed(command=victim.command.name, signal=number.name, moments=moments, tried=0, ended=0, faults=())


def _with(row: Killed, ended: bool, fault: str) -> Killed:
    faults = tuple(dict.fromkeys([*row.faults, *([fault] if fault else [])]))
    return dataclasses.replace(row, tried=row.tried + 1, ended=row.ended + ended, faults=faults)


def victims(names: tuple[str, ...], root: Path) -> Iterator[Victim]:
    """The commands of these names, each with its folder below `root`."""
    makers: dict[str, Callable[[], Command]] = {
        "build": lambda: commands.build("onnxruntime"),
        "build-openvino": lambda: commands.build("openvino"),
        "build-tvm": lambda: commands.build("tvm"),
        "compress": commands.compress,
        "device": commands.device,
        "profile": commands.profile,
        "report": commands.report,
    }
    for name in names:
        yield Victim(makers[name](), commands.prepare(root / f"{name}-{os.getpid()}"))
