"""Processes on an emulated device: the bundle's own runner with its instructions counted, and the runtime's arena."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevit.backends import MODULES, backend
from edgevit.devices.qemu import emulator, guest_program, native_run
from edgevit.devices.qemu.emulator import Counter, Cpu, Userland
from edgevit.devices.qemu.estimate import Block, read_blocks
from edgevit.devices.ssh.python_board import program_files
from edgevit.errors import DeviceError
from edgevit.schema.manifest import Bundle, Manifest, PathName
from edgevit.schema.measurement import Environment, HeapPeaks
from edgevit.util import strict_json

GUEST = "edgevit.devices.qemu.guest_program"
# (path, image, effort) of an inference; one without a path warms up.
Asked = tuple[PathName | None, int, float]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden case as it came out there."""

    path: PathName
    error: float
    gates_equal: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `emulatework` leaves: golden cases, the gates of every run, and the machine as its guest sees it."""

    golden: tuple[Golden, ...]
    gates: tuple[tuple[int, ...], ...]
    heap: HeapPeaks | None
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class Place:
    """A processor of the user land, the folder to work in, and what may still be taken."""

    userland: Userland
    cpu: Cpu
    folder: Path
    timeout_s: float

    def python(
        self, arguments: Sequence[str], folder: Path, counts: Counter | None = None, *, heap: bool = False
    ) -> subprocess.CompletedProcess[str]:
        return emulator.run(
            self.userland,
            self.cpu,
            arguments,
            folder=folder,
            paths=(self.folder / "program",),
            counts=counts,
            heap=heap,
            timeout_s=self.timeout_s,
        )


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What the runs of one process told: its answer, and per run instructions by class, blocks, and cache misses."""

    answer: Answer
    classes: tuple[dict[str, int], ...]
    blocks: tuple[tuple[Block, ...], ...]
    misses: tuple[tuple[int, ...], ...]


def copy_program(folder: Path, runtime: str) -> None:
    """The modules that run there, apart from this machine's packages; of machine code none of the runtime's does."""
    own = () if backend(runtime).NATIVE else (MODULES[runtime],)
    for name, content in program_files((GUEST, *own)).items():
        assert isinstance(content, Path)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, folder / name)


def work(
    place: Place,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    asked: Sequence[Asked],
    *,
    more: int,
    caches: str,
) -> Worked:
    """Run golden inputs and inferences in one process; where it can be counted, count what they execute and hold.

    Args:
        place: where.
        bundle: what.
        pixels: images, uint8 `[n, height, width, 3]`.
        asked: the inferences.
        more: how many more, at most, to look for other gates with.
        caches: caches to model, as `count.c` takes them: in the first run, and in the first on each path.

    Raises:
        DeviceError: the runner fails there, or tells what cannot be read.
    """
    out, blocks = place.folder / "counts", place.folder / "blocks"
    first = {path: at for at, (path, _, _) in reversed(list(enumerate(asked)))}
    counter = Counter(out=out, blocks=blocks, caches=caches, misses=tuple(first.values()))
    ask = _native if backend(bundle.manifest.backend).NATIVE else _python
    answer = ask(place, bundle, pixels, asked, more, counter if place.userland.plugin else None)
    if place.userland.plugin is None:
        return Worked(answer=answer, classes=(), blocks=(), misses=())
    classes, misses = _counts(out)
    told = tuple(read_blocks(blocks))
    if not len(classes) == len(told) == len(answer.gates):
        raise DeviceError(f"of {len(answer.gates)} inferences {len(classes)} were counted; set the device up again")
    return Worked(answer=answer, classes=classes, blocks=told, misses=misses)


def _python(
    place: Place,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    asked: Sequence[Asked],
    more: int,
    counter: Counter | None,
) -> Answer:
    """With the bundle's Python runner."""
    np.save(place.folder / guest_program.IMAGES, pixels, allow_pickle=False)
    runs = [(index, effort) for _, index, effort in asked]
    request = {"bundle": str(bundle.folder.resolve()), "runs": runs, "between": more, "threads": 1}
    done = place.python(["-m", GUEST, json.dumps(request)], place.folder, counter, heap=True)
    if done.returncode:
        raise DeviceError(
            f"the bundle does not run on the emulated {place.cpu.name}: {emulator.last_words(done.stderr)}"
        )
    return read_answer(place.folder / guest_program.ANSWER, bundle.manifest, len(asked))


def _native(
    place: Place,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    asked: Sequence[Asked],
    more: int,
    counter: Counter | None,
) -> Answer:
    """With its C++ runner."""
    userland, cpu, timeout_s = place.userland, place.cpu, place.timeout_s
    results = native_run.golden(userland, cpu, bundle, timeout_s=timeout_s)
    runs = [(index, effort) for _, index, effort in asked]
    ran = native_run.run(
        userland, cpu, bundle, pixels, runs, more=more, counter=counter, heap=True, timeout_s=timeout_s
    )
    return Answer(
        golden=tuple(
            Golden(path=each.path, error=each.logit_error, gates_equal=not each.changed_gates) for each in results
        ),
        gates=ran.gates,
        heap=ran.heap,
        environment=native_run.machine(cpu, bundle.manifest),
    )


def _counts(path: Path) -> tuple[tuple[dict[str, int], ...], tuple[tuple[int, ...], ...]]:
    """Instructions by class, and misses of each cache, per run."""
    names, *lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    rows = [dict(zip(names, map(int, line), strict=True)) for line in lines]
    is_miss = [name for name in names if name.startswith("miss")]
    classes = tuple({name: count for name, count in row.items() if name not in is_miss} for row in rows)
    return classes, tuple(tuple(row[name] for name in is_miss) for row in rows)


def read_answer(path: Path, manifest: Manifest, runs: int) -> Answer:
    """Read what the bundle's runner made of it, trusting nothing.

    Raises:
        DeviceError: no answer, or one that does not fit the bundle and the number of runs at least.
    """
    faults: list[str] = []
    try:
        answer = strict_json.from_data(Answer, json.loads(path.read_text(encoding="utf-8")), faults, "answer")
    except (OSError, ValueError, RecursionError) as error:
        answer, faults = None, [str(error)]
    if answer is not None:
        if [case.path for case in answer.golden] != [case.path for case in manifest.golden]:
            faults.append("golden outputs are missing")
        if len(answer.gates) < runs or {len(gates) for gates in answer.gates} != {len(manifest.branches)}:
            faults.append("gates do not fit the runs and branches")
    if answer is None or faults:
        raise DeviceError(f"the bundle's runner gives no answer that can be read: {'; '.join(faults[:3])}")
    return answer


def arena_peak(here: Place, bundle: Bundle, image: NDArray[np.uint8]) -> int | None:
    """What the runtime's arena holds at most there, over all-open, all-skipped and real; None if it has no arena."""
    manifest = bundle.manifest

    def start(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        return here.python(arguments, folder)

    settings = {key: str(value) for key, value in manifest.runtime_settings.items()}
    return backend(manifest.backend).arena_peak(bundle.folder / manifest.model, image, settings, start)
