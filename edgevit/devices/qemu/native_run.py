"""Machine code on an emulated processor: its own C++ runner is all that runs there, and is handed image after image."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.native import NativeProgram, NativeRunner, native_backend
from edgevit.bundle.read import GoldenResult, rerun_golden
from edgevit.devices.qemu import emulator
from edgevit.devices.qemu.emulator import Counter, Cpu, Userland
from edgevit.devices.qemu.guest_program import between
from edgevit.errors import DeviceError, EdgevitError
from edgevit.measure.environment import environment, snapshot
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.schema.measurement import Environment, HeapPeaks
from edgevit.schema.target import missing_flags
from edgevit.util.atomic import scratch

PYTHON = "none: the C++ runner"
ALIGN_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What the runner gave: the gates of every run, and its heap where the accountant counted it."""

    gates: tuple[tuple[int, ...], ...]
    heap: HeapPeaks | None


def require_fit(manifest: Manifest, cpu: Cpu) -> None:
    """Refuse machine code that the processor does not run.

    Raises:
        DeviceError: it is for another architecture, or for instructions that the processor does not have.
    """
    target = manifest.target
    if target.arch != "aarch64":
        raise DeviceError(
            f"{manifest.name} is machine code for {target.arch}, {cpu.name} is an aarch64 processor; build it for a "
            "target of that"
        )
    if lacking := missing_flags(target, set(cpu.features)):
        raise DeviceError(
            f"{cpu.name} lacks {', '.join(lacking)}, which the machine code for {target.name} uses; build for a target "
            "that has less"
        )


def run(
    userland: Userland,
    cpu: Cpu,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    runs: Sequence[tuple[int, float]],
    *,
    more: int,
    counter: Counter | None,
    heap: bool,
    timeout_s: float,
) -> Ran:
    """Run (image, effort) after (image, effort) in one process, then up to `more` that look for other gates.

    Raises:
        DeviceError: the runner fails there, or time is up.
    """
    with _started(userland, cpu, bundle, counter=counter, heap=heap, timeout_s=timeout_s) as runner:

        def taken(index: int, effort: float) -> list[int]:
            return [int(gate) for gate in runner.run(pixels[index : index + 1], effort)[1]]

        gates = [taken(index, effort) for index, effort in runs]
        gates += between(taken, len(pixels), more)
        return Ran(gates=tuple(map(tuple, gates)), heap=_heap(runner.told))


def golden(userland: Userland, cpu: Cpu, bundle: Bundle, *, timeout_s: float) -> tuple[GoldenResult, ...]:
    """Run the bundle's golden inputs, in a process of their own, so that they are not counted.

    Raises:
        DeviceError: the runner fails there, or time is up.
    """
    with _started(userland, cpu, bundle, counter=None, heap=False, timeout_s=timeout_s) as runner:
        return rerun_golden(bundle, runner)


def arena_peak(bundle: Bundle, heap: HeapPeaks | None) -> int | None:
    """What a run holds at most there: what it is given, and what it allocates beside that; None if not counted."""
    if heap is None:
        return None
    return sum(_aligned(part) for part in _program(bundle).given_bytes) + heap.running_bytes - heap.loaded_bytes


def machine(cpu: Cpu, manifest: Manifest) -> Environment:
    """The processor as its guest sees it."""
    with scratch() as root:
        (root / "proc").mkdir()
        (root / "proc/cpuinfo").write_text(emulator.cpuinfo(cpu), encoding="ascii")
        now = snapshot(root)
        found = environment(
            now,
            now,
            runtime=manifest.backend,
            runtime_version=manifest.tools.get(manifest.backend, ""),
            inference_precision=manifest.target.inference_precision,
            threads=1,
            root=root,
        )
    return dataclasses.replace(found, arch="aarch64", python=PYTHON)


@contextmanager
def _started(
    userland: Userland, cpu: Cpu, bundle: Bundle, *, counter: Counter | None, heap: bool, timeout_s: float
) -> Iterator[NativeRunner]:
    """The bundle's runner in the emulator; the counter has written what it counted when the context ends."""
    own = _program(bundle)
    program = bundle.folder / own.path
    program.chmod(program.stat().st_mode | 0o100)  # unpacking a zip may lose it
    expired = threading.Event()
    with emulator.started(userland, cpu, counter, heap=heap) as command:
        runner = own.start([*command, str(program.resolve())], threads=1, environment=emulator.environment(userland))

        def give_up() -> None:
            expired.set()
            runner.kill()

        alarm = threading.Timer(timeout_s, give_up)
        alarm.daemon = True
        alarm.start()
        try:
            yield runner
        except EdgevitError as error:
            raise (emulator.too_slow(cpu, timeout_s) if expired.is_set() else _failure(cpu, error)) from None
        finally:
            alarm.cancel()
            runner.close()


def _program(bundle: Bundle) -> NativeProgram:
    return native_backend(bundle.manifest.backend).program(bundle.folder.resolve())


def _failure(cpu: Cpu, error: EdgevitError) -> DeviceError:
    return DeviceError(f"the bundle does not run on the emulated {cpu.name}: {error}")


def _heap(told: dict[str, Any]) -> HeapPeaks | None:
    """The runner tells what it held before its model, at most while loading, then, and at most since."""
    if "heap_bytes" not in told:
        return None
    before, loading, loaded, running = (int(held) for held in told["heap_bytes"])
    return HeapPeaks(loading_bytes=loading - before, loaded_bytes=loaded - before, running_bytes=running - before)


def _aligned(size: int) -> int:
    return (size + ALIGN_BYTES) // ALIGN_BYTES * ALIGN_BYTES
