"""A little of everything in a process of its own, which forks: `python -m tests.chaos.short PART` prints what broke."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.backends.tvm.available import MISSING
from tests.chaos import faults, kills, run


def killed(root: Path) -> Iterator[kills.Killed]:
    """Device setup often, as it takes no time; a build and a training at a few moments."""
    (device,) = kills.victims(("device",), root)
    for number in kills.SIGNALS:
        yield from _last(kills.at_random(device, number, 2))
    yield from _last(kills.at_renames(device, signal.SIGKILL))
    build, compress = kills.victims(("build", "compress"), root)
    yield from _last(kills.at_renames(build, signal.SIGKILL, 2))
    yield from _last(kills.at_random(build, signal.SIGTERM, 1))
    yield from _last(kills.at_random(compress, signal.SIGINT, 1))
    yield from _last(kills.at_random(compress, signal.SIGKILL, 1))


def _last(counts: Iterator[kills.Killed]) -> list[kills.Killed]:
    """Of counts that grow, the whole."""
    return list(counts)[-1:]


def faulted(root: Path) -> Iterator[faults.Tried]:
    """Every writer where files cannot grow, and one of the other faults each."""
    more: dict[str, list[faults.Fault]] = {
        "build": [faults.memory_limit(0), faults.file_limit(64_000)],
        **({} if MISSING else {"build-tvm": [faults.file_limit(64_000)]}),
        "compress": [faults.file_limit(16_000)],
        "device": [faults.clock_back(), faults.file_limit(100)],
        "profile": [faults.vanish(2)],
        "report": [faults.vanish(1), faults.clock_back()],
    }
    if faults.mountable():
        more["build"].append(faults.full_disk("tmp", 128 << 10))
        more["report"] += [faults.read_only("out"), faults.read_only_install()]
    for name, victim in zip(more, kills.victims(tuple(more), root), strict=True):
        for fault in (faults.file_limit(0), *more[name]):
            yield faults.attempt(victim.command, victim.root, fault)
    yield faults.stdout_full(victim.command, victim.root)


def main(part: str) -> None:
    run.prepare()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        rows: list[kills.Killed | faults.Tried] = list((killed if part == "kills" else faulted)(Path(folder)))
    for row in rows:
        print(row, file=sys.stderr)
    broke = [row.faults if isinstance(row, kills.Killed) else row.wrong for row in rows]
    print(json.dumps({"rows": len(rows), "broke": list(filter(None, broke))}))


if __name__ == "__main__":
    main(sys.argv[1])
