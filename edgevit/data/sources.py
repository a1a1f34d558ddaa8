"""Where images come from: a file, a folder, a .tar or .zip, a TOML manifest. Archives are never unpacked to disk."""

from __future__ import annotations

import csv
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgevit.data.manifest import leaves_folder, read_manifest
from edgevit.errors import ImagesError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
KINDS = f"an image ({', '.join(SUFFIXES)}), a folder of them, a .tar or .zip of them, or a .toml manifest"
MEMBER_LIMIT_BYTES = 64 << 20  # no photograph is larger; a longer archive member is an accident or an attack
LABELS = "labels.csv"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image that can be read: its name within the source, its label if the source knows one, and its bytes."""

    name: str
    label: int | None
    read: Callable[[], bytes]


@contextmanager
def open_source(source: Path) -> Iterator[tuple[Entry, ...]]:
    """List the images of `source`, sorted by name except in a manifest; they can be read inside the `with`.

    Labels come from `labels.csv` (columns `file` and `label`, paths relative to it), from a manifest's `label`, or from
    class folders: a folder named by a whole number is that label, otherwise its place among the sorted folder names.

    Raises:
        ImagesError: nothing there, not one of the kinds above, no image in it, or a member that leaves the archive.
    """
    if not source.exists():
        raise ImagesError(f"no images at {source}: no such file or folder. Give {KINDS}")
    suffix = source.suffix.lower()
    if source.is_dir():
        yield _entries(source, _folder(source))
    elif suffix == ".toml":
        yield _manifest(source)
    elif suffix == ".tar":
        with _open_tar(source) as archive:
            yield _entries(source, _tar(source, archive))
    elif suffix == ".zip":
        with _open_zip(source) as archive:
            yield _entries(source, _zip(source, archive))
    elif suffix in SUFFIXES:
        yield (Entry(name=source.name, label=None, read=source.read_bytes),)
    else:
        raise ImagesError(f"{source} is not a source of images: got a {suffix or 'suffixless'} file. Give {KINDS}")


def _entries(source: Path, files: Mapping[str, Callable[[], bytes]]) -> tuple[Entry, ...]:
    """The images among `files` with their labels; `files` maps names with forward slashes to readers."""
    names = sorted(name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES)
    if not names:
        kinds = sorted({PurePosixPath(name).suffix.lower() or "no suffix" for name in files})
        found = f"found {len(files)} files of other kinds ({', '.join(kinds[:6])})" if files else "it is empty"
        raise ImagesError(f"no images in {source}: {found}. Allowed: {', '.join(SUFFIXES)}")
    table = next((name for name in sorted(files, key=len) if PurePosixPath(name).name == LABELS), None)
    labels = _folder_labels(names) if table is None else _csv_labels(source, table, files[table]())
    return tuple(Entry(name=name, label=labels.get(name), read=files[name]) for name in names)


def _csv_labels(source: Path, table: str, raw: bytes) -> dict[str, int]:
    reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig", errors="replace"), newline=""))
    columns = reader.fieldnames or []
    column = next((c for c in columns if c == "label"), next((c for c in columns if c.endswith("label")), None))
    if "file" not in columns or column is None:
        got = ", ".join(columns) or "none"
        raise ImagesError(f"{source}: {table} needs the columns 'file' and 'label', got: {got}")
    labels: dict[str, int] = {}
    for number, row in enumerate(reader, start=2):
        value = row[column] or ""
        if not value.isascii() or not value.isdigit():
            raise ImagesError(f"{source}: {table} line {number}: got label {value!r}, allowed: a whole number from 0")
        labels[str(PurePosixPath(table).parent / (row["file"] or ""))] = int(value)
    return labels


def _folder_labels(names: list[str]) -> dict[str, int]:
    parents = {name: PurePosixPath(name).parent.name for name in names}
    classes = sorted(set(parents.values()))
    if "" in classes or len(classes) < 2:
        return {}
    numbered = all(name.isascii() and name.isdigit() for name in classes)
    return {name: int(parent) if numbered else classes.index(parent) for name, parent in parents.items()}


def _folder(root: Path) -> dict[str, Callable[[], bytes]]:
    inside = root.resolve()
    files: dict[str, Callable[[], bytes]] = {}
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(inside):
            raise ImagesError(f"{path} is a link that leads outside {root}; only files inside the folder are read")
        files[relative.as_posix()] = path.read_bytes
    return files


def _manifest(path: Path) -> tuple[Entry, ...]:
    images = read_manifest(path).image
    return tuple(Entry(name=i.file, label=i.label, read=(path.parent / i.file).read_bytes) for i in images)


def _open_tar(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r:")
    except (OSError, tarfile.TarError) as error:
        raise ImagesError(f"{source} cannot be read as an uncompressed tar: {error}") from None


def _tar(source: Path, archive: tarfile.TarFile) -> dict[str, Callable[[], bytes]]:
    try:
        members = archive.getmembers()
    except (OSError, tarfile.TarError) as error:
        raise ImagesError(f"{source} is a damaged tar: {error}") from None
    files: dict[str, Callable[[], bytes]] = {}
    for member in members:
        plain = member.isfile() or member.isdir()
        _check_member(source, member.name, "" if plain else "a link or a special file", member.size)
        if member.isfile() and not _hidden(member.name):
            files[_tidy(member.name)] = lambda m=member: _read_tar(archive, m)  # type: ignore[misc]
    return files


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _open_zip(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise ImagesError(f"{source} cannot be read as a zip: {error}") from None


def _zip(source: Path, archive: zipfile.ZipFile) -> dict[str, Callable[[], bytes]]:
    files: dict[str, Callable[[], bytes]] = {}
    for member in archive.infolist():
        odd = "a link" if stat.S_ISLNK(member.external_attr >> 16) else "encrypted" if member.flag_bits & 1 else ""
        _check_member(source, member.filename, odd, member.file_size)
        if not member.is_dir() and not _hidden(member.filename):
            files[_tidy(member.filename)] = lambda m=member: _read_zip(archive, m)  # type: ignore[misc]
    return files


def _read_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        raw = file.read(MEMBER_LIMIT_BYTES + 1)  # the size in the directory may lie
    if len(raw) > MEMBER_LIMIT_BYTES:
        raise zipfile.BadZipFile(f"{member.filename} is larger than the archive says")
    return raw


def _check_member(source: Path, name: str, odd: str, size_bytes: int) -> None:
    if leaves_folder(name):
        raise ImagesError(f"{source} refused: its member {name!r} points outside the archive")
    if odd:
        raise ImagesError(f"{source} refused: its member {name!r} is {odd}; only plain files and folders are read")
    if size_bytes > MEMBER_LIMIT_BYTES:
        raise ImagesError(
            f"{source} refused: its member {name!r} has {size_bytes} bytes, allowed: {MEMBER_LIMIT_BYTES}"
        )


def _tidy(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in PurePosixPath(_tidy(name)).parts)
