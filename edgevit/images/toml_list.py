"""An image set as a TOML file: each image with its hash, source and licence, so that it can be shipped and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgevit.errors import ImagesError
from edgevit.util import strict_json
from edgevit.util.limits import IMAGE_BYTES, TEXT_BYTES, read_regular
from edgevit.util.text import listed, read_toml

MAX_LABEL = 10**6


@dataclass(frozen=True, kw_only=True)
class ManifestImage:
    """One image: `file` is relative to the manifest, `source` says which photograph it was made from and by whom."""

    file: str
    sha256: str
    source: str
    licence: str
    label: int | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A named set of images; `licence` covers the set as a whole."""

    name: str
    description: str
    licence: str
    image: tuple[ManifestImage, ...]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and check every image's path and hash.

    Raises:
        ImagesError: with every fault at once: keys and types, paths that leave the folder, missing or changed files.
    """
    try:
        data = read_toml(path, TEXT_BYTES)
    except (OSError, ValueError) as error:
        raise ImagesError(f"image manifest {path} cannot be read as TOML: {error}") from None
    faults: list[str] = []
    manifest = strict_json.from_data(Manifest, data, faults, "manifest")
    if manifest is not None:
        faults = [fault for image in manifest.image for fault in _faults(path.parent, image)]
        if not manifest.image:
            faults = ["image: got no entry, at least one [[image]] is needed"]
    if manifest is None or faults:
        raise ImagesError(f"image manifest {path} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n{listed(faults)}")
    return manifest


def leaves_folder(name: str) -> bool:
    """Return whether a path written in a manifest or an archive points outside the folder it is relative to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (bool(path.parts) and path.parts[0].endswith(":"))


def _faults(folder: Path, image: ManifestImage) -> list[str]:
    path = folder / image.file
    if image.label is not None and not 0 <= image.label <= MAX_LABEL:
        return [f"{image.file}: got label {image.label}, allowed: 0 to {MAX_LABEL}"]
    try:
        if leaves_folder(image.file) or not path.resolve().is_relative_to(folder.resolve()):
            return [f"{image.file}: leads outside the manifest's folder; only files beside or below it are read"]
        digest = hashlib.sha256(read_regular(path, IMAGE_BYTES)).hexdigest()
    except OSError as error:
        return [f"{image.file}: {error.strerror or error}"]
    except (ValueError, RuntimeError) as error:  # NUL in a name, links in a loop
        return [f"{image.file}: {error}"]
    if digest != image.sha256:
        return [f"{image.file}: changed since the manifest was written: sha256 is {digest}, expected {image.sha256}"]
    return []
