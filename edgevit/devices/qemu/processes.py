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

from edgevit.bundle.read import compare_golden
from edgevit.devices.python_program import program_files
from edgevit.devices.qemu import emulator, guest_program, native_run
from edgevit.devices.qemu.emulator import Counter, Userland
from edgevit.devices.qemu.estimate import Block, read_blocks
from edgevit.devices.runtimes import native_arena_peak, python_arena_peak, python_modules, runs_natively
from edgevit.errors import DeviceError
from edgevit.schema.arm_cpus import ArmCpu
from edgevit.schema.manifest import Bundle, Manifest, PathName
from edgevit.schema.measurement import Environment, GoldenParity, HeapPeaks
from edgevit.util import strict_json

GUEST = "edgevit.devices.qemu.guest_program"
# (path, image, effort) of an inference; one without a path warms up.
RequestedRun = tuple[PathName | None, int, float]


@dataclass(frozen=True, kw_only=True)
class GoldenOutputs:
    """What came of a golden input there."""

    path: PathName
    logits: tuple[float, ...]
    gates: tuple[int, ...]
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GuestAnswer:
    """What `guest_program` leaves: golden outputs, the gates of every run, and the machine as its guest sees it."""

    golden: tuple[GoldenOutputs, ...]
    gates: tuple[tuple[int, ...], ...]
    heap: HeapPeaks | None
    environment: Environment
    tokens: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class GuestRuns:
    """What the bundle's runner gave, whichever it is: the same, with its golden outputs compared.

    `tokens` are those of every run, as it tells them.
    """

    golden: tuple[GoldenParity, ...]
    gates: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    heap: HeapPeaks | None
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class EmulatedMachine:
    """A processor of the user land, the folder to work in, and the time and memory that may be taken."""

    userland: Userland
    cpu: ArmCpu
    folder: Path
    timeout_s: float
    memory_bytes: int | None = None

    def run_python(
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
            memory_bytes=self.memory_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What the runs of one process told: what the runner gave; per run instructions by class, blocks, cache misses."""

    guest: GuestRuns
    classes: tuple[dict[str, int], ...]
    blocks: tuple[tuple[Block, ...], ...]
    misses: tuple[tuple[int, ...], ...]


def copy_program(folder: Path, backend: str) -> None:
    """Copy the modules that run there, apart from this machine's packages."""
    for name, content in program_files((GUEST, *python_modules(backend))).items():
        assert isinstance(content, Path)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, folder / name)


def work(
    here: EmulatedMachine,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    requested: Sequence[RequestedRun],
    *,
    more: int,
    caches: str,
) -> RunResult:
    """Run golden inputs and inferences in one process; where it can be counted, count what they execute and hold.

    Args:
        here: the processor, and where to work.
        bundle: what.
        pixels: images, uint8 `[n, height, width, 3]`.
        requested: the inferences.
        more: how many more, at most, to look for other gates with.
        caches: caches to model, as `count.c` takes them: in the first run, and in the first on each path.

    Raises:
        DeviceError: the runner fails there, or tells what cannot be read.
    """
    out, blocks = here.folder / "counts", here.folder / "blocks"
    first = {path: at for at, (path, _, _) in reversed(list(enumerate(requested)))}
    counter = Counter(out=out, blocks=blocks, caches=caches, misses=tuple(first.values()))
    run = _native if runs_natively(bundle.manifest.backend) else _python
    guest = run(here, bundle, pixels, requested, more, counter if here.userland.plugin else None)
    if here.userland.plugin is None:
        return RunResult(guest=guest, classes=(), blocks=(), misses=())
    classes, misses = _counts(out)
    told = tuple(read_blocks(blocks))
    if not len(classes) == len(told) == len(guest.gates):
        raise DeviceError(f"of {len(guest.gates)} inferences {len(classes)} were counted; set the device up again")
    return RunResult(guest=guest, classes=classes, blocks=told, misses=misses)


def _python(
    here: EmulatedMachine,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    requested: Sequence[RequestedRun],
    more: int,
    counter: Counter | None,
) -> GuestRuns:
    """Run with the bundle's Python runner."""
    np.save(here.folder / guest_program.IMAGES, pixels, allow_pickle=False)
    runs = [(index, effort) for _, index, effort in requested]
    request = {"bundle": str(bundle.folder.resolve()), "runs": runs, "between": more, "threads": 1}
    done = here.run_python(["-m", GUEST, json.dumps(request)], here.folder, counter, heap=True)
    if done.returncode:
        raise DeviceError(
            f"the bundle does not run on the emulated {here.cpu.name}: {emulator.last_words(done.stderr)}"
        )
    answer = read_answer(here.folder / guest_program.ANSWER, bundle.manifest, len(requested))
    results = (
        compare_golden(
            bundle,
            case,
            np.array([got.logits], np.float32),
            np.array(got.gates, np.uint8),
            None if got.tokens is None else np.array(got.tokens, np.int64).astype(np.int32),
        )
        for case, got in zip(bundle.manifest.golden, answer.golden, strict=True)
    )
    return GuestRuns(
        golden=tuple(result.parity(bundle.manifest.golden_tolerance) for result in results),
        gates=answer.gates,
        tokens=answer.tokens or tuple(() for _ in answer.gates),
        heap=answer.heap,
        environment=answer.environment,
    )


def _native(
    here: EmulatedMachine,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    requested: Sequence[RequestedRun],
    more: int,
    counter: Counter | None,
) -> GuestRuns:
    """Run with the bundle's C++ runner."""
    userland, cpu, timeout_s, memory_bytes = here.userland, here.cpu, here.timeout_s, here.memory_bytes
    golden = native_run.golden(userland, cpu, bundle, timeout_s=timeout_s, memory_bytes=memory_bytes)
    runs = [(index, effort) for _, index, effort in requested]
    ran = native_run.run(
        userland,
        cpu,
        bundle,
        pixels,
        runs,
        more=more,
        counter=counter,
        heap=True,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
    )
    return GuestRuns(
        golden=golden,
        gates=ran.gates,
        tokens=ran.tokens,
        heap=ran.heap,
        environment=native_run.machine(cpu, bundle.manifest),
    )


def _counts(path: Path) -> tuple[tuple[dict[str, int], ...], tuple[tuple[int, ...], ...]]:
    """Return instructions by class, and misses of each cache, per run."""
    names, *lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    rows = [dict(zip(names, map(int, line), strict=True)) for line in lines]
    is_miss = [name for name in names if name.startswith("miss")]
    classes = tuple({name: count for name, count in row.items() if name not in is_miss} for row in rows)
    return classes, tuple(tuple(row[name] for name in is_miss) for row in rows)


def read_answer(path: Path, manifest: Manifest, runs: int) -> GuestAnswer:
    """Read what the bundle's runner made of it, trusting nothing.

    Raises:
        DeviceError: no answer, or one that does not fit the bundle and the number of runs at least.
    """
    faults: list[str] = []
    try:
        answer = strict_json.from_data(GuestAnswer, json.loads(path.read_text(encoding="utf-8")), faults, "answer")
    except (OSError, ValueError, RecursionError) as error:
        answer, faults = None, [str(error)]
    if answer is not None:
        if [case.path for case in answer.golden] != [case.path for case in manifest.golden]:
            faults.append("golden outputs are missing")
        classes = next(output.shape[-1] for output in manifest.outputs if output.name == "logits")
        if {(len(case.logits), len(case.gates)) for case in answer.golden} - {(classes, len(manifest.branches))}:
            faults.append("golden outputs are of another shape")
        if len(answer.gates) < runs or {len(gates) for gates in answer.gates} != {len(manifest.branches)}:
            faults.append("gates do not fit the runs and branches")
        if len(answer.tokens) not in (0, len(answer.gates)) or len(set(map(len, answer.tokens))) > 1:
            faults.append("tokens do not fit the runs")
    if answer is None or faults:
        raise DeviceError(f"the bundle's runner gives no answer that can be read: {'; '.join(faults[:3])}")
    return answer


def arena_peak(here: EmulatedMachine, bundle: Bundle, image: NDArray[np.uint8], heap: HeapPeaks | None) -> int | None:
    """Return what the runtime's arena holds at most there, over all paths; None if it has none, or was not counted."""
    if runs_natively(bundle.manifest.backend):
        return native_arena_peak(bundle, heap)

    def start(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        return here.run_python(arguments, folder)

    return python_arena_peak(bundle, image, start)
