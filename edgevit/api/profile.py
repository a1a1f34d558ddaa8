"""Measure a bundle: here, on a board over ssh, or on an emulated processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgevit.report.notebook  # noqa: F401  a notebook shows measurements from now on
from edgevit.api import baselines
from edgevit.api.bundle import Bundle, bundle_path
from edgevit.api.images import Images, take_images
from edgevit.build.preflight import Output, ready
from edgevit.devices import profile as devices
from edgevit.devices.machine import find
from edgevit.devices.request import DEFAULT_RUNS, DEFAULT_TIMEOUT_S
from edgevit.errors import DeviceError
from edgevit.program.program import Program
from edgevit.report.lines import lines
from edgevit.schema import manifest
from edgevit.schema.measurement import ImagesUsed, Measurement
from edgevit.schema.measurement_file import write_measurement
from edgevit.util import atomic

__all__ = ["Measurement", "lines", "profile"]


def profile(
    bundle: Bundle | str | Path,
    images: Images | None = None,
    *,
    device: str | None = None,
    runs: int = DEFAULT_RUNS,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    against: Program | str | Path | None = None,
    against_weights: str | Path | None = None,
    effort: str | float | None = None,
    python: str = "python3",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    output: str | Path | None = None,
    force: bool = False,
) -> Measurement:
    """Measure a bundle: latency of every path, gates on images, time and memory per branch.

    This executes what the bundle holds, in a process of its own with limits on time and memory. It may be machine code,
    which can do all that you can: measure only bundles whose makers you trust.

    Args:
        bundle: what to measure, or the path of its folder or .zip.
        images: real images, see `edgevit` (default: the bundle's golden inputs, which show no real mix of images: open
            rates and expected times then mean little).
        device: "ssh://[user@]board[:port]", "qemu:CPU" such as "qemu:cortex-a76", or None for this machine.
        runs: timed runs per path; p90 needs 64, p95 130, p99 662.
        threads: of a run (default: the target's).
        cpus: numbers of the device's CPUs to hold the run to (default: all).
        against: the model to time beside the bundle in the same run, in float, in PyTorch and as the default runtime
            quantizes it by itself: a Program, or what `load` takes; "none" times the bundle alone. Default: on this
            machine the original that the bundle names, with random weights, which take as long.
        against_weights: checkpoint of `against`, where that is a name.
        effort: the operating point that real images are run at, a name such as "fast" or a number (default: as
            calibrated, and the times of every named point are measured too).
        python: Python on a board, 3.11 or newer with numpy and the bundle's runtime; machine code needs none.
        timeout_s: seconds that the measuring may take, here too.
        output: file to write the measurement to, which `report` reads (default: none).
        force: replace a measurement that is there.

    Raises:
        DeviceError: the device cannot be reached, lacks something, or is another architecture than the bundle's.
        BundleError: not a bundle, damaged, or without golden inputs when there are no images; or its model crashes
            here, does not end, or takes too much memory.
        ImagesError: no usable image.
        OperatingPointError: the bundle has no operating point of that name, or every image runs the same.
        OutputError: the output is there already, or cannot be written.
        RuntimeMissingError: the bundle's runtime is not installed.

    Example:
        >>> measurement = edgevit.profile("out/tiny", "photos/", runs=10, output="here.json")
        >>> [path.path for path in measurement.paths], measurement.images.count
        (['all_open', 'all_skipped', 'real'], 10)
    """
    if output is not None:
        ready([Output(path=Path(output), folder=False)])
        atomic.refuse_existing(Path(output), "measurement", force=force)
    machine = find(device, python=python)
    if machine.emulated and cpus is not None:
        raise DeviceError("an emulated device has one processor, and cpus chooses among a real one's; omit it")
    if machine.kind != "local" and (against is not None or against_weights is not None):
        raise DeviceError("other models are timed beside a bundle on this machine only; omit --against")
    given = Path(images) if isinstance(images, str) else images
    source = given if given is None or isinstance(given, Path) else partial(_taken, images=given)
    beside = baselines.prepare(against, None if against_weights is None else Path(against_weights))
    measured = devices.profile(
        bundle_path(bundle),
        source,
        machine,
        runs=runs,
        threads=threads,
        cpus=cpus,
        timeout_s=timeout_s,
        baselines=beside if machine.kind == "local" else None,
        effort=effort,
    )
    if output is not None:
        write_measurement(measured, Path(output), force=force)
    return measured


def _taken(opened: manifest.Bundle, count: int, *, images: Images) -> tuple[NDArray[np.uint8], ImagesUsed]:
    """Return images that are no path as pixels to measure with, and what they are."""
    taken = take_images(images, opened.manifest.input.preprocessing, limit=count)
    used = ImagesUsed(count=len(taken), digest=taken.digest, golden=False, unreadable=len(taken.unreadable))
    return taken.images, used
