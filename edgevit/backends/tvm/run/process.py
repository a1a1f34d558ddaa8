"""The C++ runner as a process that takes images one after the other: here, or in an emulator."""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import Answer
from edgevit.backends.inputs import feed
from edgevit.backends.tvm.run.runner import Manifest
from edgevit.backends.tvm.run.trace import Call, kernel_calls
from edgevit.errors import BundleError, EdgevitError, ImagesError, RuntimeMissingError
from edgevit.schema.arm_cpus import least_cpu
from edgevit.util.machines import INSTALL_EMULATOR, MACHINES, emulator_path

SYSROOT = "/usr/aarch64-linux-gnu"  # where Debian's cross compiler keeps the C library
ERRORS: dict[int, type[EdgevitError]] = {15: ImagesError, 18: RuntimeMissingError, 19: BundleError}
CLOSE_S = 10


class ProcessRunner:
    """A model in a process of its own; see `edgevit.backends.Runner`.

    `told` is all that the last run printed; with `trace` every call of it too, which costs time. `threads` is at most
    what the library was compiled for, and so many if None.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        manifest: Manifest,
        *,
        trace: bool = False,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._shape = (1, manifest.height, manifest.width, 3)
        self._classes = manifest.classes
        self._weights = [part.name for part in manifest.weights]
        fewer = threads not in (None, manifest.threads)
        options = [*(["--trace"] if trace else []), *(["--threads", str(threads)] if fewer else [])]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [*command, str(folder), "-", "--top", str(manifest.classes), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self.told: dict[str, Any] = {}

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return self.answer(image, effort)[:2]

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        inputs = feed(image, effort, shape=self._shape, gated=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(inputs["effort"].tobytes() + inputs["image"].tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._error()
        self.told = json.loads(line)
        gates = np.array(self.told["gates"], dtype=np.uint8)
        return Answer(logits_of(self.told, self._classes), gates, np.array(self.told.get("tokens", []), dtype=np.int32))

    def trace(self, image: np.ndarray, effort: float = 0.0) -> tuple[tuple[Call, ...], np.ndarray]:
        """Run one image; the kernels that it called, in order, and gates uint8 `[branches]`."""
        _, gates = self.run(image, effort)
        return kernel_calls(self.told["calls"], self._weights), gates

    def kill(self) -> None:
        """End the process; a run that waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it did not read any more
                    pipe.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __del__(self) -> None:
        if not self._errors.closed:
            self.close()

    def _error(self) -> EdgevitError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        words = [line for line in lines if line.startswith("error: ")] or lines[-1:] or [f"exit code {code}"]
        return ERRORS.get(code, BundleError)(f"the runner ended: {words[-1].removeprefix('error: ')}")


def logits_of(line: Mapping[str, Any], classes: int) -> np.ndarray:
    """Return logits float32 `[1, classes]` of a line that the runner printed; those it does not tell are inf."""
    logits = np.full((1, classes), np.inf, dtype=np.float32)
    for label, value in line["top"]:
        logits[0, label] = value
    return logits


def foreign(manifest: Manifest) -> bool:
    """Return whether the library is for another architecture than this machine's."""
    return platform.machine() not in manifest.machines


def command(manifest: Manifest, runner: Path) -> tuple[str, ...]:
    """Return how `runner` is started here: by itself, or in an emulator of a CPU that has no more than it needs.

    Raises:
        BundleError: the library is for another architecture, and no emulator of it, or of its CPU, is here.
    """
    if not foreign(manifest):
        return (str(runner),)
    if manifest.machines != MACHINES["aarch64"]:
        raise BundleError(f"this library is for {' or '.join(manifest.machines)}, this machine is {platform.machine()}")
    emulator = emulator_path()
    if emulator is None:
        raise BundleError(
            f"this library is for aarch64, this machine is {platform.machine()} and has no emulator of it; run it on "
            f"its device, or on Debian: {INSTALL_EMULATOR}"
        )
    cpu = least_cpu(manifest.flags)
    if cpu is None:
        raise BundleError(
            f"no processor that is emulated here has all of {' '.join(manifest.flags)}; run this library on its device"
        )
    return (emulator, "-cpu", cpu.qemu, "-L", SYSROOT, str(runner))
