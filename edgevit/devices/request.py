"""What is asked of a machine: an opened bundle, images that are ready for it, and how to run them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.backends import MODULES
from edgevit.bundle.read import load_golden
from edgevit.errors import BundleError
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.schema.measurement import ImagesUsed
from edgevit.schema.target import Target
from edgevit.util import strict_json

# (opened bundle, how many at most) to images uint8 `[n, height, width, 3]`, and what they are.
Prepare = Callable[[Bundle, int], tuple[NDArray[np.uint8], ImagesUsed]]
DEFAULT_RUNS = 200
DEFAULT_TIMEOUT_S = 1800
# The Python measuring program, see `edgevit/devices/board_program.py`, and the images of a request in its folder.
PROGRAM, IMAGES = "edgevit.devices.board_program", "images.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileRequest:
    """A measurement to make.

    Attributes:
        bundle: opened, its hashes have been checked.
        images: uint8 RGB `[n, height, width, 3]`, prepared as the manifest's contract says.
        used: what the images are.
        runs: timed runs per path.
        threads: threads of a run (None: the target's).
        cpus: CPUs of the machine to hold the run to (None: all).
        timeout_s: how long it may take.
        baselines: models to time beside it, as `edgevit.build.baselines` prepared them on this machine.
        effort: of the real path (None: as calibrated, and the named operating points are timed too).
    """

    bundle: Bundle
    images: NDArray[np.uint8]
    used: ImagesUsed
    runs: int = DEFAULT_RUNS
    threads: int | None = None
    cpus: tuple[int, ...] | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    baselines: tuple[dict[str, Any], ...] = ()
    effort: float | None = None

    @property
    def target(self) -> Target:
        """Return the target the bundle was built for."""
        return self.bundle.manifest.target

    def data(self) -> dict[str, Any]:
        """Return what the Python measuring program is asked, but its images and where the bundle lies there."""
        cpus = None if self.cpus is None else list(self.cpus)
        used = strict_json.to_data(self.used)
        asked = {"used": used, "runs": self.runs, "cpus": cpus, "baselines": list(self.baselines)}
        return {**run_data(self.bundle.manifest, self.threads), **asked, "effort": self.effort}


def run_data(manifest: Manifest, threads: int | None) -> dict[str, Any]:
    """Return what the Python measuring program is told to run a model: threads, and the module of its backend."""
    return {"threads": threads, "backend": MODULES.get(manifest.backend)}


def prepare_images(bundle: Bundle, count: int, *, source: Path | None = None) -> tuple[NDArray[np.uint8], ImagesUsed]:
    """Return images of the user, at most `count` and spread over the source; without a source the golden ones.

    Raises:
        BundleError: there is no source, and the bundle has no golden inputs.
        ImagesError: no usable image.
    """
    if source is not None:
        from edgevit.images.image_set import load_images  # a board that is sent its images needs no Pillow

        loaded = load_images(source, bundle.manifest.input.preprocessing, limit=count)
        used = ImagesUsed(count=len(loaded), digest=loaded.digest, golden=False, unreadable=len(loaded.unreadable))
        return loaded.images, used
    golden = [load_golden(bundle, case)[0] for case in bundle.manifest.golden]
    if not golden:
        raise BundleError(f"{bundle.manifest.name} holds no golden inputs; give images with --images")
    pixels: NDArray[Any] = np.unique(np.concatenate(golden), axis=0)[:count]
    return pixels, ImagesUsed(count=len(pixels), digest=hashlib.sha256(pixels.data).hexdigest(), golden=True)
