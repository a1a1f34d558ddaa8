"""A bundle's own C++ runner on an emulated processor: all that runs there, and handed image after image."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.native import NativeRunner
from edgevit.bundle.read import rerun_golden
from edgevit.devices import confined
from edgevit.devices.qemu import emulator
from edgevit.devices.qemu.emulator import Counter, Userland
from edgevit.devices.qemu.guest_program import between
from edgevit.devices.runtimes import NO_PYTHON, start_runner
from edgevit.errors import DeviceError, EdgevitError
from edgevit.measure.environment import environment, snapshot
from edgevit.schema.arm_cpus import ArmCpu
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.schema.measurement import Environment, GoldenParity, HeapPeaks
from edgevit.schema.target import missing_flags
from edgevit.util.atomic import scratch


@dataclass(frozen=True, kw_only=True)
class NativeRun:
    """What the runner gave: gates and tokens of every run, and its heap where the accountant counted it."""

    gates: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    heap: HeapPeaks | None


def require_fit(manifest: Manifest, cpu: ArmCpu) -> None:
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
    if missing := missing_flags(target, set(cpu.features)):
        raise DeviceError(
            f"{cpu.name} lacks {', '.join(missing)}, which the machine code for {target.name} uses; build for a target "
            "that has less"
        )


def run(
    userland: Userland,
    cpu: ArmCpu,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    runs: Sequence[tuple[int, float]],
    *,
    more: int,
    counter: Counter | None,
    heap: bool,
    timeout_s: float,
    memory_bytes: int | None,
) -> NativeRun:
    """Run (image, effort) after (image, effort) in one process, then up to `more` that look for other gates.

    The emulator, its guest's memory included, may hold `memory_bytes` at most.

    Raises:
        DeviceError: the runner fails there, or time is up.
    """
    with _started(
        userland, cpu, bundle, counter=counter, heap=heap, timeout_s=timeout_s, memory_bytes=memory_bytes
    ) as runner:
        tokens: list[tuple[int, ...]] = []

        def taken(index: int, effort: float) -> list[int]:
            answer = runner.answer(pixels[index : index + 1], effort)
            tokens.append(tuple(map(int, answer.tokens)))
            return [int(gate) for gate in answer.gates]

        gates = [taken(index, effort) for index, effort in runs]
        gates += between(taken, len(pixels), more)
        return NativeRun(gates=tuple(map(tuple, gates)), tokens=tuple(tokens), heap=_heap(runner.told))


def golden(
    userland: Userland, cpu: ArmCpu, bundle: Bundle, *, timeout_s: float, memory_bytes: int | None
) -> tuple[GoldenParity, ...]:
    """Run the bundle's golden inputs, in a process of their own, so that they are not counted.

    Raises:
        DeviceError: the runner fails there, or time is up.
    """
    with _started(
        userland, cpu, bundle, counter=None, heap=False, timeout_s=timeout_s, memory_bytes=memory_bytes
    ) as runner:
        return tuple(result.parity(bundle.manifest.golden_tolerance) for result in rerun_golden(bundle, runner))


def machine(cpu: ArmCpu, manifest: Manifest) -> Environment:
    """Describe the processor as its guest sees it."""
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
    return dataclasses.replace(found, arch="aarch64", python=NO_PYTHON)


@contextmanager
def _started(
    userland: Userland,
    cpu: ArmCpu,
    bundle: Bundle,
    *,
    counter: Counter | None,
    heap: bool,
    timeout_s: float,
    memory_bytes: int | None,
) -> Iterator[NativeRunner]:
    """Start the bundle's runner in the emulator; the counter has written its counts when the context ends."""
    expired = threading.Event()
    with emulator.started(userland, cpu, counter, heap=heap) as command:
        if memory_bytes is not None:  # of the emulator itself: it ignores the limits of a guest
            command = confined.held_command(command, memory_bytes)
        runner = start_runner(command, bundle, emulator.environment(userland))

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


def _failure(cpu: ArmCpu, error: EdgevitError) -> DeviceError:
    return DeviceError(f"the bundle does not run on the emulated {cpu.name}: {error}")


def _heap(told: dict[str, Any]) -> HeapPeaks | None:
    """Return what the runner held over what it did before its model: at most while loading, then, and since."""
    if "heap_bytes" not in told:
        return None
    before, loading, loaded, running = (int(held) for held in told["heap_bytes"])
    return HeapPeaks(loading_bytes=loading - before, loaded_bytes=loaded - before, running_bytes=running - before)
