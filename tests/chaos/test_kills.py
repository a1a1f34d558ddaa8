"""The harness itself: counts that grow and go on, rows of several writers, starts on a busy machine."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tests.chaos import kills
from tests.chaos.__main__ import forget, record
from tests.chaos.run import Ended


class Stub:
    """In the place of a Victim: what it was tried at, the third time with a fault."""

    def __init__(self) -> None:
        self.command, self.seconds, self.at = SimpleNamespace(name="build"), 10.0, list[float]()

    def try_at(self, number: signal.Signals, /, **how: Any) -> tuple[bool, str]:
        self.at.append(how["after_s"])
        return len(self.at) % 2 == 1, "broken" if len(self.at) == 3 else ""


def test_random_moments_go_on_where_they_were_stopped() -> None:
    whole, begun, rest = Stub(), Stub(), Stub()
    rows = list(kills.at_random(cast(kills.Victim, whole), signal.SIGTERM, 5))
    assert [row.tried for row in rows] == [1, 2, 3, 4, 5]
    assert (rows[-1].ended, rows[-1].faults, rows[-1].moments) == (3, ("broken",), kills.RANDOM)
    first = list(kills.at_random(cast(kills.Victim, begun), signal.SIGTERM, 5))[1]
    (*_, last) = kills.at_random(cast(kills.Victim, rest), signal.SIGTERM, 5, begun=first)
    assert last.tried == 5 and rest.at == whole.at[2:] and all(0 < at < 10 for at in whole.at)
    assert not list(kills.at_random(cast(kills.Victim, rest), signal.SIGTERM, 5, begun=last))


def test_rows_of_several_writers_stand_in_one_file(tmp_path: Path) -> None:
    kept = tmp_path / "chaos.json"
    row = kills.Killed(command="build", signal="SIGINT", moments=kills.RENAMES, tried=1, ended=1, faults=())
    for changes in ({}, {"signal": "SIGKILL"}, {"moments": kills.RANDOM}, {"tried": 2}):
        record(kept, "kills", dataclasses.asdict(dataclasses.replace(row, **cast(Any, changes))))
    record(kept, "soak", {"model": "m", "runner": "r", "runs": 1})
    found = json.loads(kept.read_text())
    assert [(r["signal"], r["moments"], r["tried"]) for r in found["kills"]] == [
        ("SIGKILL", kills.RENAMES, 1),
        ("SIGINT", kills.RANDOM, 1),
        ("SIGINT", kills.RENAMES, 2),
    ]
    forget(kept, "kills")
    assert json.loads(kept.read_text())["kills"] == [] and len(found["soak"]) == 1


def test_a_machine_too_busy_to_time_a_model_is_no_fault_of_a_signal() -> None:
    codes = iter([kills.BUSY, kills.BUSY, 0])
    victim = object.__new__(kills.Victim)
    victim.run = lambda *_, **__: Ended(code=next(codes), out="", said="")  # type: ignore[method-assign]
    assert victim._again().code == 0
    codes = iter([kills.BUSY] * 20)
    assert victim._again().code == kills.BUSY
