"""This machine: open a bundle, load its model, run its golden inputs, measure it.

Whoever made the bundle, `verify` and a measurement leave its model to a process of its own, within limits:
`edgevit/devices/board_program.py`, which calls `measure_here` and `loaded`.
Needs numpy, pillow and the runtime; the build's stages are in `edgevit/pipeline.py`.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np

from edgevit.backends import MODULES, Runner, backend
from edgevit.bundle.read import GoldenResult, load_golden, open_bundle, rerun_golden
from edgevit.devices import confined
from edgevit.devices.request import IMAGES, PROGRAM, ProfileRequest, run_data
from edgevit.errors import BundleError, DeviceError
from edgevit.measure.environment import cpu_flags, pin_to_cpus
from edgevit.measure.run import profile_bundle
from edgevit.measure.warnings import other_version
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.schema.measurement import Baseline, Measurement
from edgevit.schema.target import missing_flags
from edgevit.util import limits, strict_json
from edgevit.util.atomic import scratch

T = TypeVar("T")
BASELINES = "edgevit.build.baselines"  # by name: a board is not sent what a desk prepares
MOST_WHY = 300


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A bundle whose hashes held, and its golden outputs here (none: they were not run).

    `missing_flags` are CPU flags its target counts on, `other_runtime` says where the runtime here is another version
    than it was verified with ('': it is not, or the bundle brings its own), `signature` whether it is signed by the
    owner of a key that was given.
    """

    manifest: Manifest
    sha256: str
    golden: tuple[GoldenResult, ...]
    missing_flags: tuple[str, ...]
    other_runtime: str = ""
    signature: Literal["none", "unchecked", "holds"] = "none"


@dataclass(frozen=True, kw_only=True)
class LocalMachine:
    """This machine; see `edgevit.devices.machine.Machine`. It measures in a process of its own, within limits."""

    kind: str = "local"
    emulated: bool = False
    most_images: int | None = None

    def check(self, threads: int | None) -> None:
        """Refuse nothing: what a bundle needs is looked at when it is loaded."""

    def measure(self, request: ProfileRequest) -> Measurement:
        """Measure on this machine.

        Raises:
            BundleError: its model crashes, does not end in time, or takes too much memory.
            DeviceError: CPUs that this machine does not offer, or machine code for another architecture.
            RuntimeMissingError: the bundle's runtime is not installed.
        """
        subject = f"the model of {request.bundle.manifest.name}"
        with scratch() as folder:
            np.save(folder / IMAGES, request.images, allow_pickle=False)
            asked, seconds = request.data(), request.timeout_s
            answer = _confined(request.bundle, folder, asked, threads=request.threads, seconds=seconds, subject=subject)
            measured = _read(Measurement, answer, "measurement", subject)
            other = other_runtime(request.bundle.manifest)
            return replace(measured, warnings=(*measured.warnings, *([other] if other else [])))


def measure_here(request: ProfileRequest) -> Measurement:
    """Measure in this process, which should be one of its own: a model may crash it.

    Raises:
        DeviceError: CPUs that this machine does not offer, or machine code for another architecture.
        RuntimeMissingError: the bundle's runtime is not installed.
    """
    bundle, target = request.bundle, request.target
    name = bundle.manifest.backend
    if target.cpu is not None and target.arch != platform.machine():
        raise DeviceError(
            f"{bundle.manifest.name} is machine code for {target.arch}, this machine is {platform.machine()}, and "
            "an emulator has no time of its own; measure it on its device with --device ssh://user@board"
        )
    allowed = bundle.manifest.golden_tolerance
    with pin_to_cpus(request.cpus), loaded(bundle, request.threads) as runner, ExitStack() as stack:
        beside, baselines = _baselines(request, request.threads or target.threads, stack)
        return profile_bundle(
            bundle,
            runner,
            request.images,
            request.used,
            backend=MODULES[name],
            runtime_version=backend(name).versions()[name],
            runs=request.runs,
            threads=request.threads or target.threads,
            cpus=request.cpus,
            golden=tuple(result.parity(allowed) for result in rerun_golden(bundle, runner)),
            beside=beside,
            baselines=baselines,
            effort=request.effort,
        )


def _baselines(
    request: ProfileRequest, threads: int, stack: ExitStack
) -> tuple[dict[str, Runner], tuple[Baseline, ...]]:
    """Return the models to time beside the bundle by name, and what is said of each, also why it is not timed."""
    beside: dict[str, Runner] = {}
    said = []
    for each in request.baselines:
        name, runtime, why = each["name"], each["runtime"], each["why"]
        try:
            if not why:
                runner = importlib.import_module(BASELINES).load(each["kind"], Path(each["folder"]), threads=threads)
                stack.callback(runner.close)
                runner.run(request.images[:1])
                beside[name] = runner
        except Exception as error:  # of a runtime or of PyTorch, which share no base class
            why = f"{type(error).__name__}: {error}"[:MOST_WHY]
        version = metadata.version(runtime) if name in beside else ""
        said.append(Baseline(name=name, runtime=runtime, runtime_version=version, why=why))
    return beside, tuple(said)


def machine(device: str | None, *, python: str = "python3") -> LocalMachine:
    """Return this machine, whatever is given."""
    return LocalMachine()


def inspect(path: Path, *, sha256: str | None = None) -> Verified:
    """Check a bundle as data, without its runtime and without running anything of it.

    Its manifest, every file's size and hash, that nothing else is there, and that its golden arrays are what they
    should be. What it computes is not asked.

    Args:
        path: the bundle, folder or zip.
        sha256: of its manifest, if it must be the one that something else was found out about.

    Raises:
        BundleError: not a bundle, or damaged, or another one by now.
    """
    with open_bundle(path) as bundle:
        _require(bundle, sha256, path)
        for case in bundle.manifest.golden:
            load_golden(bundle, case)
        return _verified(bundle, ())


def verify(
    path: Path, *, threads: int | None = None, timeout_s: float | None = None, sha256: str | None = None
) -> Verified:
    """Check every file of a bundle against its manifest and run its golden inputs again, in a process of its own.

    This runs what the bundle holds: machine code, where it was compiled for its device.

    Args:
        path: the bundle, folder or zip.
        threads: threads of a run (None: the target's).
        timeout_s: seconds that it may take (None: `limits.RUN_SECONDS`).
        sha256: see `inspect`; nothing of another bundle is run.

    Raises:
        BundleError: not a bundle, or damaged, or another one by now; or its model crashes, does not end, or takes too
            much memory.
        ParityError: a golden output is not reproduced.
        RuntimeMissingError: its runtime is not installed.
    """
    seconds = limits.RUN_SECONDS.value if timeout_s is None else timeout_s
    with open_bundle(path) as bundle, scratch() as folder:
        _require(bundle, sha256, path)
        asked, subject = run_data(bundle.manifest, threads), f"the model of {path}"
        answer = _confined(bundle, folder, asked, threads=threads, seconds=seconds, subject=subject)
        return _verified(bundle, _read(tuple[GoldenResult, ...], answer, "golden", subject))


@contextmanager
def loaded(bundle: Bundle, threads: int | None = None) -> Iterator[Runner]:
    """Load the bundle's model with its runtime; freed at the end of the context."""
    manifest = bundle.manifest
    model, target = PurePosixPath(manifest.model), manifest.target
    runner = backend(manifest.backend).load(
        bundle.folder / model.parent,
        threads=threads or target.threads,
        precision=target.inference_precision,
        file=model.name,
        weight_bits=target.weight_bits,
    )
    try:
        yield runner
    finally:
        runner.close()


def missing_cpu_flags(manifest: Manifest) -> tuple[str, ...]:
    """Return CPU flags that the bundle's target counts on and this machine does not have."""
    return missing_flags(manifest.target, cpu_flags())


def other_runtime(manifest: Manifest) -> str:
    """Return what to say where the runtime that is installed here is not the bundle's version; else nothing."""
    try:
        here = metadata.version(manifest.backend)
    except metadata.PackageNotFoundError:  # said where it is needed; machine code brings its own
        return ""
    return other_version(manifest.backend, manifest.tools.get(manifest.backend, ""), here, "this machine")


def _confined(
    bundle: Bundle, folder: Path, asked: dict[str, Any], *, threads: int | None, seconds: float, subject: str
) -> dict[str, Any]:
    """Return what the Python measuring program answers, run within limits in `folder`."""
    allowed = confined.allowance(bundle.manifest, seconds=seconds, threads=threads)
    return confined.call(PROGRAM, {**asked, "bundle": str(bundle.folder.resolve())}, folder, allowed, subject)


def _read(kind: type[T], answer: dict[str, Any], key: str, subject: str) -> T:
    """Read what the process answered, trusting nothing in it.

    Raises:
        BundleError: it is not what was asked for.
    """
    faults: list[str] = []
    value = strict_json.from_data(kind, answer.get(key), faults, key)
    if value is None:
        told = "; ".join(strict_json.first(faults, 3))
        raise BundleError(f"{subject} ran, but its {key} cannot be read ({told}); build the bundle again")
    return value


def _require(bundle: Bundle, sha256: str | None, path: Path) -> None:
    """Refuse a bundle that was exchanged between two looks at it."""
    if sha256 is not None and bundle.sha256 != sha256:
        raise BundleError(f"{path} was changed while it was verified; verify it again when nothing writes to it")


def _verified(bundle: Bundle, golden: tuple[GoldenResult, ...]) -> Verified:
    return Verified(
        manifest=bundle.manifest,
        sha256=bundle.sha256,
        golden=golden,
        missing_flags=missing_cpu_flags(bundle.manifest),
        other_runtime=other_runtime(bundle.manifest),
    )
