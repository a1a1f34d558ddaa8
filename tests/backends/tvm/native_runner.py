"""Start the C++ runner, here or under an emulator, and read what it prints."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends.tvm.native import build_runner
from edgevit.backends.tvm.process import SYSROOT, emulator_path
from edgevit.errors import RuntimeMissingError
from tests.absent import unavailable

WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True, kw_only=True)
class Native:
    """The compiled runner and what to start it with."""

    path: Path
    before: tuple[str, ...] = ()

    def on(self, cpu: str) -> Native:
        """The same under an emulator of `cpu`."""
        return Native(path=self.path, before=(*self.before[:1], "-cpu", cpu, *self.before[3:]))

    def start(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*self.before, str(self.path), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def run(self, folder: Path, image: Path, *, effort: float = 0.0, runs: int = 1, top: int = 1000) -> dict[str, Any]:
        done = self.start(folder, image, "--effort", effort, "--runs", runs, "--top", top)
        assert done.returncode == 0, done.stderr
        return read(done)


def here(folder: Path) -> Native:
    try:
        return Native(path=build_runner("x86_64", folder, options=WARNINGS))
    except RuntimeMissingError as error:
        unavailable(str(error))


def emulated(folder: Path) -> Native:
    """For aarch64, under qemu's user mode with Debian's libraries for the cross compiler."""
    found = emulator_path()
    if found is None:
        unavailable("qemu is not installed; on Debian: apt install qemu-user-static")
    try:
        path = build_runner("aarch64", folder, options=WARNINGS)
    except RuntimeMissingError as error:
        unavailable(str(error))
    return Native(path=path, before=(found, "-cpu", "cortex-a53", "-L", SYSROOT))


def read(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one line that it printed."""
    assert done.stdout.count("\n") == 1
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def outputs(printed: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """All logits `[1, classes]` and gates of a printed line."""
    logits = np.empty((1, len(printed["top"])), dtype=np.float32)
    for label, value in printed["top"]:
        logits[0, label] = value
    return logits, np.array(printed["gates"], dtype=np.uint8)
