"""Build a Program as `edgevit build` does, in this process and with nothing else in it, and print where the time goes.

python -m benchmarks.staged_build JSON        (started by benchmarks/build_stages.py)
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# How a message begins that begins a stage, as the report calls it; two more come before.
BEGINS = {
    "Quantizing": "ranges, plan, rounding",
    "Lowering": "lowering",
    "Compiling": "compiling",
    "Verifying": "verifying",
    "Measuring operating points": "operating points",
    "Writing the bundle": "golden outputs, report, bundle",
}
START, IMAGES = "Python, imports", "Program, images, tools"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Wall and CPU time of one stage; CPU with that of processes it started."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build: what it spent by stage, in order, its images, and the most memory that a process of it held."""

    model: str
    images: int
    calibrating: int
    stages: dict[str, Spent]
    peak_bytes: int = 0


class Watch(logging.Handler):
    """Notes when each stage begins: what has been spent until then."""

    def __init__(self, began: float) -> None:
        super().__init__(logging.INFO)
        self.began = began
        self.marks: list[tuple[str, Spent]] = [(START, Spent(wall_s=0.0, cpu_s=0.0))]

    def emit(self, record: logging.LogRecord) -> None:
        name = next((name for said, name in BEGINS.items() if record.getMessage().startswith(said)), None)
        if name is not None and name != self.marks[-1][0]:
            self.mark(name)

    def mark(self, name: str) -> None:
        self.marks.append((name, self.now()))

    def now(self) -> Spent:
        own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return Spent(
            wall_s=time.time() - self.began,
            cpu_s=own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime,
        )


def spent(marks: Sequence[tuple[str, Spent]], end: Spent) -> dict[str, Spent]:
    """Return what each stage took, from what had been spent when it began; a stage that begins twice is added up."""
    found: dict[str, Spent] = {}
    for (name, first), (_, last) in zip(marks, [*marks[1:], ("", end)], strict=True):
        before = found.get(name, Spent(wall_s=0.0, cpu_s=0.0))
        found[name] = Spent(
            wall_s=before.wall_s + last.wall_s - first.wall_s, cpu_s=before.cpu_s + last.cpu_s - first.cpu_s
        )
    return found


def build_one(model: str, program: Path, target: str, source: Path, images: int, began: float) -> Build:
    """Build a Program in this process as `edgevit build` does, and time its stages; it `began` at that time."""
    watch = Watch(began)
    from edgevit.api.build import run_build
    from edgevit.api.job import Job

    logger = logging.getLogger("edgevit")
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    watch.mark(IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(model=str(program), target=target, calibration=source, limit=images, output=Path(folder) / "bundle")
        built = run_build(job)
        end = watch.now()
    calibrating = built.manifest.recipe.calibration_images
    return Build(model=model, images=images, calibrating=calibrating, stages=spent(watch.marks, end))


if __name__ == "__main__":
    import edgevit.cli  # noqa: F401 -- as the command does
    from edgevit.util import strict_json

    model, program, target, source, images, began = json.loads(sys.argv[1])
    print(strict_json.dumps(build_one(model, Path(program), target, Path(source), images, began)))
