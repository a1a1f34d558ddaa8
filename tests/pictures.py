"""Small labelled sets in every form that can be read."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from edgevit.program.spec import ImageSpec

SPEC = ImageSpec(height=16, width=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), crop_pct=0.9, interpolation="bicubic")


def picture_bytes(seed: int = 0, size: tuple[int, int] = (20, 24), kind: str = "PNG") -> bytes:
    """A file of random pixels, `size` is height and width."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog", "eel"), each: int = 4) -> Path:
    """`each` different pictures in one folder per class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            (root / name / f"{index}.png").write_bytes(picture_bytes(label * each + index))
    return root


def packed(folder: Path, kind: str) -> Path:
    """A folder as .tar or .zip beside it."""
    path = folder.with_suffix(f".{kind}")
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(folder.parent).as_posix())
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder.parent).as_posix())
    return path


def npz(path: Path, raws: list[bytes], **changed: np.ndarray | None) -> Path:
    """An .npz of image files; labels are 0, 1, 2, 0, ...; a key of `changed` replaces an array or leaves it out."""
    arrays: dict[str, np.ndarray | None] = {
        "jpeg": np.frombuffer(b"".join(raws), dtype=np.uint8),
        "offset": np.cumsum([0, *map(len, raws)]),
        "label": np.arange(len(raws), dtype=np.uint8) % 3,
        "classes": np.array(["cat", "dog", "eel"]),
    }
    kept = {key: array for key, array in (arrays | changed).items() if array is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]
    return path
