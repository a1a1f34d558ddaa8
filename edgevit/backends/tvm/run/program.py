"""The C++ runner of a build, for whoever starts it: see `edgevit.backends.native.NativeProgram`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.backends.tvm.branch_times import kernel_times
from edgevit.backends.tvm.run.process import ProcessRunner
from edgevit.backends.tvm.run.runner import LIBRARY, MANIFEST, WEIGHTS, Manifest
from edgevit.backends.tvm.run.trace import kernel_calls
from edgevit.measure.branch_times import Trace

NATIVE = "runner/native"


@dataclass(frozen=True, kw_only=True)
class TvmProgram:
    """The runner of the build in `folder`, which `manifest` describes."""

    folder: Path
    manifest: Manifest
    path: str = f"{NATIVE}/runner"
    files: tuple[str, ...] = (LIBRARY, WEIGHTS, MANIFEST)

    @property
    def given_bytes(self) -> tuple[int, ...]:
        about = self.manifest
        if about.memory:
            return about.memory, 3 * about.height * about.width, 4 * about.classes, about.branches
        counted = (4 * about.points,) if about.points else ()
        return 4 * about.arena, 3 * about.height * about.width, 4, 4 * about.classes, about.branches, *counted

    def start(
        self, command: Sequence[str], *, threads: int | None = None, environment: Mapping[str, str] | None = None
    ) -> ProcessRunner:
        return ProcessRunner(command, self.folder, self.manifest, threads=threads, environment=environment)

    def branch_times(
        self, calls: Sequence[Sequence[Sequence[Any]]], *, branches: Sequence[str], gated: Sequence[str]
    ) -> Trace:
        names = [part.name for part in self.manifest.weights]
        runs = [kernel_calls([tuple(call) for call in run], names) for run in calls]
        return kernel_times(runs, branches=branches, gated=gated)
