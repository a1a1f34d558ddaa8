"""Backends whose builds are machine code with a program of their own: what runs them where there is no Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgevit.backends import MODULES, Backend, Runner, backend
from edgevit.errors import RuntimeMissingError

if TYPE_CHECKING:
    from edgevit.measure.branch_times import Trace


class NativeRunner(Runner, Protocol):
    """A started program that is handed image after image; `told` is all that it printed of the last run."""

    told: dict[str, Any]

    def kill(self) -> None:
        """End the process; a run that waits for it fails."""
        ...


class NativeProgram(Protocol):
    """The program of one build; it takes a folder, `-` for images on its input, and options.

    Attributes:
        path: of the program in the build's folder, `runner/native/...`; the libraries that it loads lie beside it.
        files: what it loads from the build's folder, by name.
        given_bytes: sizes of the buffers that a run is given: memory to work in, image, logits and gates.
    """

    @property
    def path(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def given_bytes(self) -> tuple[int, ...]: ...

    def start(
        self, command: Sequence[str], *, threads: int | None = None, environment: Mapping[str, str] | None = None
    ) -> NativeRunner:
        """Start it by a command that ends with the program's path, on this machine or in an emulator."""
        ...

    def branch_times(
        self, calls: Sequence[Sequence[Sequence[Any]]], *, branches: Sequence[str], gated: Sequence[str]
    ) -> Trace:
        """Read the `calls` that it printed of the runs that `measure.branch_times.traced` lists."""
        ...


class NativeBackend(Backend, Protocol):
    """A backend with NATIVE."""

    def program(self, folder: Path) -> NativeProgram:
        """Return the program of the build in `folder`.

        Raises:
            BundleError: what it needs to know of the build cannot be read.
        """
        ...

    def start(self, folder: Path, *, trace: bool = False, threads: int | None = None) -> NativeRunner:
        """Start the program of the build in `folder` here, on at most as many threads as it was compiled for.

        Raises:
            BundleError: it is missing, or cannot run here.
        """
        ...


def native_backend(name: str) -> NativeBackend:
    """Return the backend `name`, whose builds have a program of their own.

    Raises:
        RuntimeMissingError: no such backend of that name.
    """
    found = backend(name)
    if not found.NATIVE:
        known = ", ".join(each for each in MODULES if backend(each).NATIVE)
        raise RuntimeMissingError(f"builds for {name} have no program of their own; those for these have: {known}")
    return cast(NativeBackend, found)
