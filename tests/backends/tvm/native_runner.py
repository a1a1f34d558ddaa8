"""Start the C++ runner, here or under an emulator, and read what it prints."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends.tvm.codegen.schedules import Isa
from edgevit.backends.tvm.compile import library
from edgevit.backends.tvm.compile.emit import lower
from edgevit.backends.tvm.compile.native import build_runner
from edgevit.backends.tvm.run.process import SYSROOT
from edgevit.backends.tvm.run.runner import LIBRARY, MANIFEST, WEIGHTS
from edgevit.errors import OutputError, RuntimeMissingError
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.util.machines import emulator_path
from tests.absent import unavailable
from tests.tiny import tiny_images

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
# What the sanitizers find ends a process with this code, which is none of the runner's own.
FOUND = 99
SANITIZERS = {
    "ASAN_OPTIONS": f"exitcode={FOUND}:allocator_may_return_null=1:detect_leaks=1",
    "UBSAN_OPTIONS": f"exitcode={FOUND}",
    "LSAN_OPTIONS": f"exitcode={FOUND}",
}


@dataclass(frozen=True, kw_only=True)
class Native:
    """The compiled runner and what to start it with."""

    path: Path
    before: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    def on(self, cpu: str) -> Native:
        """The same under an emulator of `cpu`."""
        return Native(path=self.path, before=(*self.before[:1], "-cpu", cpu, *self.before[3:]))

    def start(self, *arguments: object, sent: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [*self.before, str(self.path), *map(str, arguments)]
        environment = {**os.environ, **(self.environment or {})}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, input=sent, env=environment
        )

    def run(self, folder: Path, image: Path, *, effort: float = 0.0, runs: int = 1, top: int = 1000) -> dict[str, Any]:
        done = self.start(folder, image, "--json", "--effort", effort, "--runs", runs, "--top", top)
        assert done.returncode == 0, done.stderr
        return read(done)


def here(folder: Path) -> Native:
    try:
        return Native(path=build_runner("x86_64", folder, options=WARNINGS))
    except RuntimeMissingError as error:
        unavailable(str(error))


def sanitized(folder: Path) -> Native:
    """Watched by the compiler's sanitizers of memory and of what the language leaves undefined."""
    try:
        path = build_runner("x86_64", folder, options=(*WARNINGS, *SANITIZED))
    except RuntimeMissingError as error:
        unavailable(str(error))
    except OutputError as error:
        if "asan" not in str(error):
            raise
        unavailable(f"g++ has no sanitizers; on Debian: apt install libgcc-12-dev ({str(error)[-200:]})")
    return Native(path=path, environment=SANITIZERS)


def written(program: Program, isa: Isa, folder: Path, plan: QuantPlan | None = None) -> Path:
    """The model's folder, with its first image as `image.raw`."""
    library.write(lower(program, isa, plan), folder)
    (folder / "image.raw").write_bytes(tiny_images(program.spec, 1).tobytes())
    return folder


def copied(folder: Path, target: Path) -> Path:
    for path in filter(Path.is_file, folder.iterdir()):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def resign(folder: Path) -> None:
    """Let `model.json` say what the files beside it are now, as whoever changes a model on purpose would."""
    path = folder / MANIFEST
    text = path.read_bytes()
    for name in (LIBRARY, WEIGHTS):
        content = (folder / name).read_bytes() if (folder / name).is_file() else b""
        entry = rb'("path": "%s",\s+"bytes": )\d+(,\s+"sha256": ")[0-9a-f]{64}' % re.escape(name.encode())
        told = rb"\g<1>%d\g<2>%s" % (len(content), hashlib.sha256(content).hexdigest().encode())
        text = re.sub(entry, told, text)
    own = re.search(rb'"sha256": "([0-9a-f]{64})"\s*}[^]]*$', text)
    if own:
        blank = text[: own.start(1)] + text[own.end(1) :]
        text = text[: own.start(1)] + hashlib.sha256(blank).hexdigest().encode() + text[own.end(1) :]
    path.write_bytes(text)


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
    """All logits `[1, classes]` and gates of a printed line, of an image or of a stream."""
    logits = np.empty((1, len(printed["top"])), dtype=np.float32)
    for row in printed["top"]:
        label, value = (row["class"], row["score"]) if isinstance(row, dict) else row
        logits[0, label] = value
    return logits, np.array(printed["gates"], dtype=np.uint8)
