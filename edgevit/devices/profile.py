"""Profile a bundle: open it, prepare images, and let a machine measure it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgevit.bundle.read import open_bundle
from edgevit.devices.machine import Machine, find
from edgevit.devices.request import DEFAULT_RUNS, DEFAULT_TIMEOUT_S, Prepare, ProfileRequest, prepare_images
from edgevit.errors import OperatingPointError
from edgevit.schema.manifest import Bundle
from edgevit.schema.measurement import Measurement
from edgevit.schema.points import WHY_NONE, effort_of
from edgevit.util.atomic import scratch


def profile(
    path: Path,
    images: Path | Prepare | None,
    machine: Machine | None = None,
    *,
    runs: int = DEFAULT_RUNS,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    baselines: Callable[[Bundle, Path], Sequence[dict[str, Any]]] | None = None,
    effort: str | float | None = None,
) -> Measurement:
    """Measure a bundle with the user's images, or with its own golden inputs if there are none.

    Args:
        path: the bundle, folder or zip.
        images: the user's, or what gives them; None: the bundle's golden inputs.
        machine: where, see `machine.find`; None: here.
        runs: timed runs per path.
        threads: threads of a run (None: the target's).
        cpus: CPUs of the machine to hold the run to (None: all).
        timeout_s: seconds that it may take.
        baselines: writes models to time beside the bundle into a folder, and says what they are (this machine only).
        effort: a number or the name of an operating point, of the real path (None: as calibrated, and every named
            point is timed too).

    Raises:
        BundleError: not a bundle, damaged, or without golden inputs when `images` is None; or its model crashes here,
            does not end in time, or takes too much memory.
        DeviceError: the machine cannot be reached, lacks something, or gives no measurement.
        ImagesError: no usable image.
        OperatingPointError: no operating point of that name, or an effort where every image runs the same.
        ParityError: an emulated machine does not reproduce a golden output.
        RuntimeMissingError: the bundle's runtime is not installed here.
        SkipError: an emulated machine executes a closed branch.
    """
    machine = machine or find(None)
    machine.check(threads)
    with open_bundle(path) as bundle, scratch() as folder:
        asked = None if effort is None else _effort(effort, bundle, path)
        prepare = images if callable(images) else partial(prepare_images, source=images)
        pixels, used = prepare(bundle, min(runs, machine.most_images or runs))
        request = ProfileRequest(
            bundle=bundle,
            images=pixels,
            used=used,
            runs=runs,
            threads=threads,
            cpus=None if cpus is None else tuple(cpus),
            timeout_s=timeout_s,
            baselines=tuple(baselines(bundle, folder)) if baselines is not None else (),
            effort=asked,
        )
        return machine.measure(request)


def _effort(asked: str | float, bundle: Bundle, path: Path) -> float:
    """Return the effort that was asked for, as finite as JSON has it.

    Raises:
        OperatingPointError: there is none such.
    """
    manifest = bundle.manifest
    effort = effort_of(asked, manifest.points, str(path))
    if manifest.effort is None:
        raise OperatingPointError(f"{path} takes no effort{WHY_NONE}")
    return min(max(effort, manifest.effort.all_skipped), manifest.effort.all_open)
