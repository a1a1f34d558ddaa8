"""A transport for tests, all that one takes: steps run in a folder of this machine, as they would elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevit.devices import remote
from edgevit.devices.machine import PROGRAMS, BoardAnswers, Content, Session, Step, StepResult
from edgevit.devices.request import ProfileRequest
from edgevit.schema.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class LoopSession:
    folder: Path

    def describe(self) -> BoardAnswers:
        files = ("/proc/cpuinfo", "/proc/loadavg", "/proc/self/status", "/etc/os-release")
        told = {name: Path(name).read_text() for name in files if Path(name).is_file()}
        return {"machine": os.uname().machine, "bits": "64", "kernel": "Loop 1.0", **told}

    def run(self, files: Mapping[str, Content], steps: Sequence[Step], *, timeout_s: float) -> dict[str, StepResult]:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            path.chmod(0o700 if name.startswith(f"{PROGRAMS}/") else 0o600)
        results: dict[str, StepResult] = {}
        for step in steps:
            program = sys.executable if step.program is None else str(self.folder / step.program)
            before = self.describe()
            done = subprocess.run(
                [program, *step.arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(self.folder)},
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
            results[step.name] = StepResult(
                status=done.returncode, out=done.stdout, err=done.stderr, before=before, after=self.describe()
            )
            if done.returncode:
                break
        return results


@dataclass(frozen=True, kw_only=True)
class LoopMachine:
    name: str
    python: str
    kind: str = "loop"
    emulated: bool = False
    most_images: int | None = None

    def check(self, threads: int | None) -> None: ...

    def measure(self, request: ProfileRequest) -> Measurement:
        return remote.measure(self, request)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with tempfile.TemporaryDirectory() as folder:
            yield LoopSession(folder=Path(folder))


def machine(device: str, *, python: str = "python3") -> LoopMachine:
    return LoopMachine(name=device.removeprefix("loop:"), python=python)
