"""What happens on a device, in order: open a bundle, load its model, run its golden inputs, measure it.

Needs numpy, pillow and the runtime; the build's stages are in `edgevit/pipeline.py`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends import MODULES, Runner, backend
from edgevit.bundle.read import GoldenResult, load_golden, open_bundle, rerun_golden, verify_bundle
from edgevit.errors import BundleError, DeviceError
from edgevit.measure.environment import cpu_flags, held_to
from edgevit.measure.run import profile_bundle
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.schema.measurement import GoldenParity, ImagesUsed, Measurement
from edgevit.schema.target import missing_flags

DEFAULT_RUNS = 200


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A bundle whose hashes held, and its golden outputs here (none: they were not run).

    `missing_flags` are CPU flags its target counts on.
    """

    manifest: Manifest
    sha256: str
    golden: tuple[GoldenResult, ...]
    missing_flags: tuple[str, ...]


def inspect(path: Path) -> Verified:
    """Check a bundle as data, without its runtime and without running anything of it.

    Its manifest, every file's size and hash, that nothing else is there, and that its golden arrays are what they
    should be. What it computes is not asked.

    Raises:
        BundleError: not a bundle, or damaged.
    """
    with open_bundle(path) as bundle:
        for case in bundle.manifest.golden:
            load_golden(bundle, case)
        return Verified(
            manifest=bundle.manifest, sha256=bundle.sha256, golden=(), missing_flags=lacking(bundle.manifest)
        )


def verify(path: Path, *, threads: int | None = None) -> Verified:
    """Check every file of a bundle against its manifest and run its golden inputs again.

    This runs what the bundle holds: machine code, with some runtimes.

    Raises:
        BundleError: not a bundle, or damaged.
        ParityError: a golden output is not reproduced.
        RuntimeMissingError: its runtime is not installed.
    """
    with open_bundle(path) as bundle, loaded(bundle, threads) as runner:
        golden = verify_bundle(bundle, runner)
        return Verified(
            manifest=bundle.manifest, sha256=bundle.sha256, golden=golden, missing_flags=lacking(bundle.manifest)
        )


def profile(
    path: Path,
    images: Path | None,
    *,
    runs: int = DEFAULT_RUNS,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
) -> Measurement:
    """Measure a bundle on this machine with the user's images, or with its own golden inputs if there are none.

    Raises:
        DeviceError: `cpus` that this machine does not offer, or machine code for another architecture.
        BundleError: not a bundle, damaged, or without golden inputs when `images` is None.
        ImagesError: no usable image.
        RuntimeMissingError: its runtime is not installed.
    """
    with open_bundle(path) as bundle:
        pixels, used = prepare_images(bundle, images, runs)
        return profile_prepared(bundle, pixels, used, runs=runs, threads=threads, cpus=cpus)


def profile_prepared(
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    used: ImagesUsed,
    *,
    runs: int,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
) -> Measurement:
    """Measure an opened bundle on this machine with images uint8 `[n, height, width, 3]` that are ready for it."""
    name, target = bundle.manifest.backend, bundle.manifest.target
    if target.cpu is not None and target.arch != platform.machine():
        raise DeviceError(
            f"{bundle.manifest.name} is machine code for {target.arch}, this machine is {platform.machine()}, and an "
            "emulator has no time of its own; measure it on its device with --device ssh://user@board"
        )
    with held_to(cpus), loaded(bundle, threads) as runner:
        return profile_bundle(
            bundle,
            runner,
            pixels,
            used,
            backend=MODULES[name],
            runtime_version=backend(name).versions()[name],
            runs=runs,
            threads=threads or target.threads,
            cpus=cpus,
            golden=golden_parity(bundle, runner),
        )


def golden_parity(bundle: Bundle, runner: Runner) -> tuple[GoldenParity, ...]:
    """The bundle's golden inputs, run again on this machine."""
    return tuple(
        GoldenParity(
            path=result.path,
            logit_error=result.logit_error,
            allowed=bundle.manifest.golden_tolerance,
            gates_equal=not result.changed_gates,
        )
        for result in rerun_golden(bundle, runner)
    )


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


def lacking(manifest: Manifest) -> tuple[str, ...]:
    """CPU flags that the bundle's target counts on and this machine does not have."""
    return missing_flags(manifest.target, cpu_flags())


def prepare_images(bundle: Bundle, source: Path | None, runs: int) -> tuple[NDArray[np.uint8], ImagesUsed]:
    """Images of the user, at most one per run and spread over the source; else the golden ones."""
    if source is not None:
        from edgevit.images.image_set import load_images  # a board that is sent its images needs no Pillow

        loaded_set = load_images(source, bundle.manifest.input.preprocessing, limit=runs)
        used = ImagesUsed(
            count=len(loaded_set), digest=loaded_set.digest, golden=False, unreadable=len(loaded_set.unreadable)
        )
        return loaded_set.images, used
    golden = [load_golden(bundle, case)[0] for case in bundle.manifest.golden]
    if not golden:
        raise BundleError(f"{bundle.manifest.name} holds no golden inputs; give images with --images")
    pixels: NDArray[Any] = np.unique(np.concatenate(golden), axis=0)[:runs]
    return pixels, ImagesUsed(count=len(pixels), digest=hashlib.sha256(pixels.data).hexdigest(), golden=True)
