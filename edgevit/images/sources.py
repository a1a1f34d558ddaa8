"""Where images come from: a file, a folder, a .tar or .zip, a TOML manifest or an .npz.

Archives are never unpacked to disk.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from edgevit.errors import ImagesError
from edgevit.images.match import Basis, Labelling, natural_key
from edgevit.images.packed import READ_FAULTS, read_packed
from edgevit.images.toml_list import MAX_LABEL, leaves_folder, read_manifest
from edgevit.util.bounded import Bounded
from edgevit.util.limits import (
    IMAGE_BYTES,
    SOURCE_BYTES,
    SOURCE_HEADER_BYTES,
    SOURCE_MEMBERS,
    SOURCE_NAME,
    TABLE_COLUMNS,
    TEXT_LINES,
    ZIP_DIRECTORY_BYTES,
    Limit,
    LimitError,
    check_regular,
    open_regular,
    read_regular,
)
from edgevit.util.text import decode_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
KINDS = (
    f"an image ({', '.join(SUFFIXES)}), a folder of them, a .tar or .zip of them, a .toml manifest, or an .npz of JPEG "
    "bytes"
)
LABELS = "labels.csv"
_PLAIN = re.compile(r"[^/.][^/]*(?:/[^/.][^/]*)*")  # a name that means itself
ENCRYPTED = 0x41  # flags of a zip's member: in the old way, or strongly
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One image that can be read: its name within the source and its bytes, and what the source knows about it.

    `read` holds no open file: an entry can be pickled, and read in any process. `basis` says what the label is.
    """

    name: str
    read: Callable[[], bytes]
    label: int | None = None
    class_name: str = ""
    split: str = ""
    basis: Basis = "given"


def list_images(source: Path) -> tuple[Entry, ...]:
    """Return the images of `source`, sorted by name except in a manifest and an .npz.

    Labels come from `labels.csv` (columns `file` and `label`, paths relative to it), from a manifest's `label`, or from
    class folders: the number where all are called by whole numbers, otherwise the place among the names in natural
    order; `match.place_labels` says which classes of a model these are.
    The split comes from the column `split`, or from folders `train`, `val` and `test` above the classes.

    Raises:
        ImagesError: nothing there, not one of the kinds above, no image in it, or a member that leaves the archive.
    """
    suffix = source.suffix.lower()
    try:
        status = source.stat()
        if suffix in SUFFIXES and not stat.S_ISDIR(status.st_mode):
            check_regular(status, IMAGE_BYTES)
    except (OSError, ValueError) as error:
        what = "no such file or folder" if isinstance(error, FileNotFoundError) else error
        raise ImagesError(f"no images at {source}: {what}. Give {KINDS}") from None
    if stat.S_ISDIR(status.st_mode):
        return _entries(source, _folder(source))
    if suffix == ".toml":
        return _manifest(source)
    if suffix == ".tar":
        return _entries(source, _tar(source))
    if suffix == ".zip":
        return _entries(source, _zip(source))
    if suffix == ".npz":
        return _packed(source)
    if suffix in SUFFIXES:
        return (Entry(name=source.name, read=partial(read_regular, source, IMAGE_BYTES)),)
    raise ImagesError(f"{source} is not a source of images: got a {suffix or 'suffixless'} file. Give {KINDS}")


def _packed(source: Path) -> tuple[Entry, ...]:
    packed = read_packed(source)
    labels = packed.labels or (None,) * len(packed.readers)
    names = dict(enumerate(packed.classes))
    return tuple(
        Entry(name=f"image {i}", read=read, label=label, class_name=names.get(-1 if label is None else label, ""))
        for i, (read, label) in enumerate(zip(packed.readers, labels, strict=True))
    )


def labelling(entries: Sequence[Entry]) -> Labelling:
    """Return what the labels of all a source's images are."""
    names: dict[int, str] = {}
    for entry in entries:
        if entry.label is not None:
            names[entry.label] = entry.class_name or names.get(entry.label, "")
    basis: Basis = next((entry.basis for entry in entries if entry.label is not None), "none")
    return Labelling(basis=basis, names=names)


def split_name(written: str) -> str:
    """Return one spelling for each of train, val and test (`validation` is `val`); other names as they are."""
    return SPLITS.get(written.strip().lower(), written.strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    label: int | None = None
    class_name: str = ""
    split: str = ""
    basis: Basis = "given"


def _entries(source: Path, files: Mapping[str, Callable[[], bytes]]) -> tuple[Entry, ...]:
    """The images among `files` with what is known about them; `files` maps names with forward slashes to readers."""
    names = sorted(name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES)
    if not names:
        kinds = sorted({PurePosixPath(name).suffix.lower() or "no suffix" for name in files})
        found = f"found {len(files)} files of other kinds ({', '.join(kinds[:6])})" if files else "it is empty"
        raise ImagesError(f"no images in {source}: {found}. Allowed: {', '.join(SUFFIXES)}")
    table = next((name for name in sorted(files, key=len) if PurePosixPath(name).name == LABELS), None)
    facts = _folder_facts(names) if table is None else _csv_facts(source, table, files[table])
    entries = []
    for name in names:
        known = facts.get(name, _Facts())
        entries.append(
            Entry(
                name=name,
                read=files[name],
                label=known.label,
                class_name=known.class_name,
                split=known.split,
                basis=known.basis,
            )
        )
    return tuple(entries)


def _csv_facts(source: Path, table: str, read: Callable[[], bytes]) -> dict[str, _Facts]:
    try:
        text = decode_text(read())
        if text.count("\n") > TEXT_LINES.value:
            raise LimitError(f"it has {text.count(chr(10))} lines, allowed: {TEXT_LINES}")
        reader = csv.reader(io.StringIO(text, newline=""))
        columns = next(reader, [])
        if len(columns) > TABLE_COLUMNS.value:
            raise LimitError(f"it has {len(columns)} columns, allowed: {TABLE_COLUMNS}")
        column = next((c for c in columns if c == "label"), next((c for c in columns if c.endswith("label")), ""))
        if "file" not in columns or not column:
            got = ", ".join(columns) or "none"
            raise ImagesError(f"{source}: {table} needs the columns 'file' and 'label', got: {got[:400]}")
        if max(columns.count(name) for name in ("file", column, "name", "split")) > 1:
            raise ImagesError(f"{source}: {table} has a column twice: {', '.join(columns)[:400]}; leave one")
        places = [columns.index(name) if name in columns else None for name in ("file", column, "name", "split")]
        facts: dict[str, _Facts] = {}
        folder = PurePosixPath(table).parent
        for number, row in enumerate((row for row in reader if row), start=2):
            name, label, class_name, split = ("" if at is None or at >= len(row) else row[at] for at in places)
            known = _told(label, class_name, split)
            if known is None:
                allowed = f"allowed: a whole number from 0 to {MAX_LABEL}"
                raise ImagesError(f"{source}: {table} line {number}: got label {label[:40]!r}, {allowed}")
            if facts.setdefault(_beside(folder, name), known) != known:
                raise ImagesError(f"{source}: {table} line {number}: {name[:80]!r} was told another label before")
    except (*READ_FAULTS, csv.Error, ValueError) as error:
        raise ImagesError(f"{source}: {table} cannot be read as a table: {error}") from None
    return facts


@lru_cache(maxsize=4096)
def _told(label: str, class_name: str, split: str) -> _Facts | None:
    """Return what one row of a table says of its file; None if its label is none."""
    if not _is_label(label):
        return None
    return _Facts(label=int(label), class_name=class_name, split=split_name(split))


def _beside(folder: PurePosixPath, name: str) -> str:
    """Return where a file named in a table in `folder` lies; a table may have a million, and few need a path's care."""
    if not _PLAIN.fullmatch(name):
        return str(folder / name)
    return f"{folder}/{name}" if folder.name else name


def _folder_facts(names: list[str]) -> dict[str, _Facts]:
    splits = _folder_splits(names)
    below = {name: PurePosixPath(name) for name in names}
    if splits:  # a folder `train` is no class
        below = {name: PurePosixPath(*path.parts[len(splits[name].parts) :]) for name, path in below.items()}
    parents = {name: path.parent.name for name, path in below.items()}
    classes = {name: label for label, name in enumerate(sorted(set(parents.values()), key=natural_key))}
    known = "" not in classes and len(classes) > 1
    # 1 and 01 are two classes, not one number.
    numbered = all(map(_is_label, classes)) and len({int(name) for name in classes}) == len(classes)
    facts = {}
    for name, parent in parents.items():
        split = split_name(splits[name].name) if splits else ""
        if not known:
            facts[name] = _Facts(split=split)
        elif numbered:
            facts[name] = _Facts(label=int(parent), split=split, basis="number")
        else:
            facts[name] = _Facts(label=classes[parent], class_name=parent, split=split, basis="order")
    return facts


def _is_label(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LABEL)) and int(text) <= MAX_LABEL


def _folder_splits(names: list[str]) -> dict[str, PurePosixPath]:
    """Return for every name the folder that is its split, where the topmost folders that differ are all splits."""
    paths = {name: PurePosixPath(name).parts[:-1] for name in names}
    depth = 0
    while all(len(parts) > depth for parts in paths.values()):
        top = {parts[depth] for parts in paths.values()}
        if all(name.lower() in SPLITS for name in top):
            return {name: PurePosixPath(*parts[: depth + 1]) for name, parts in paths.items()}
        if len(top) > 1:
            break
        depth += 1
    return {}


def _folder(root: Path) -> dict[str, Callable[[], bytes]]:
    inside = root.resolve()
    files: dict[str, Callable[[], bytes]] = {}
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if any(part.startswith(".") for part in relative.parts) or path.is_dir():
            continue
        # A pipe or a broken link that is called like an image is listed: reading it fails, and that is told.
        if not path.is_file() and path.suffix.lower() not in SUFFIXES:
            continue
        try:
            outside = not path.resolve().is_relative_to(inside)
        except (OSError, RuntimeError):  # links in a loop
            outside = False
        if outside:
            raise ImagesError(f"{path} is a link that leads outside {root}; only files inside the folder are read")
        files[relative.as_posix()] = partial(read_regular, path, IMAGE_BYTES)
    return files


def _manifest(path: Path) -> tuple[Entry, ...]:
    images = read_manifest(path).image
    return tuple(
        Entry(name=i.file, label=i.label, read=partial(read_regular, path.parent / i.file, IMAGE_BYTES)) for i in images
    )


def _tar(source: Path) -> dict[str, Callable[[], bytes]]:
    files: dict[str, Callable[[], bytes]] = {}
    with (
        _archive(source, "an uncompressed tar", SOURCE_HEADER_BYTES) as raw,
        tarfile.open(fileobj=raw, mode="r:") as tar,
    ):
        count, end = 0, 0
        while (member := tar.next()) is not None:
            cast(Any, tar).members.clear()  # which would hold all of them
            count += 1
            if member.size < 0 or member.offset_data <= end:
                raise LimitError("its headers do not follow each other")
            end = member.offset_data
            plain = (member.isfile() and not member.issparse()) or member.isdir()
            _check_member(source, member.name, "" if plain else "a link or a special file", member.size, count)
            if member.isfile():
                _add(source, files, member.name, partial(_read_range, source, member.offset_data, member.size))
    return files


@contextmanager
def _archive(source: Path, kind: str, limit: Limit) -> Iterator[BinaryIO]:
    """The bytes of an archive to list its members from; whatever is wrong with it is one error."""
    try:
        with open_regular(source, SOURCE_BYTES) as file:
            yield cast(BinaryIO, Bounded(file, limit))
    except ImagesError:
        raise
    except Exception as error:  # a hostile header can raise nearly anything
        raise ImagesError(f"{source} cannot be read as {kind}: {error or type(error).__name__}") from None


def _read_range(source: Path, offset: int, size_bytes: int) -> bytes:
    with open_regular(source, SOURCE_BYTES) as file:
        file.seek(offset)
        raw = file.read(size_bytes)
    if len(raw) != size_bytes:
        raise OSError(f"{source.name} ends {size_bytes - len(raw)} bytes too early")
    return raw


def _zip(source: Path) -> dict[str, Callable[[], bytes]]:
    files: dict[str, Callable[[], bytes]] = {}
    with _archive(source, "a zip", ZIP_DIRECTORY_BYTES) as raw, zipfile.ZipFile(raw) as archive:
        for count, member in enumerate(archive.infolist(), start=1):
            odd = ""
            if stat.S_ISLNK(member.external_attr >> 16):
                odd = "a link"
            elif member.flag_bits & ENCRYPTED:
                odd = "encrypted"
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                odd = f"compressed by method {member.compress_type}, neither stored nor deflated"
            _check_member(source, member.filename, odd, member.file_size, count)
            if not member.is_dir():
                _add(source, files, member.filename, partial(_read_zip, source, member.filename))
    return files


@lru_cache(maxsize=4)
def _opened_zip(source: Path, process: int, modified_ns: int) -> zipfile.ZipFile:
    """Return an open archive per process: forked ones would share, and move, one file position."""
    return zipfile.ZipFile(source)


def _read_zip(source: Path, name: str) -> bytes:
    with _opened_zip(source, os.getpid(), source.stat().st_mtime_ns).open(name) as file:
        raw = file.read(IMAGE_BYTES.value + 1)  # the size in the directory may lie
    if len(raw) > IMAGE_BYTES.value:
        raise zipfile.BadZipFile(f"{name} is larger than the archive says")
    return raw


def _check_member(source: Path, name: str, odd: str, size_bytes: int, count: int) -> None:
    shown = repr(name[:80])
    if count > SOURCE_MEMBERS.value:
        raise ImagesError(
            f"{source} refused: it has more than {SOURCE_MEMBERS.value} members, allowed: {SOURCE_MEMBERS}; unpack it "
            "and give the folder"
        )
    if len(name) > SOURCE_NAME.value or "\0" in name:
        raise ImagesError(
            f"{source} refused: the name of its member {shown} is longer than {SOURCE_NAME}, or holds NUL"
        )
    if leaves_folder(name):
        raise ImagesError(f"{source} refused: its member {shown} points outside the archive")
    if odd:
        raise ImagesError(f"{source} refused: its member {shown} is {odd}; only plain files and folders are read")
    if size_bytes > IMAGE_BYTES.value:
        raise ImagesError(f"{source} refused: its member {shown} has {size_bytes} bytes, allowed: {IMAGE_BYTES}")


def _add(source: Path, files: dict[str, Callable[[], bytes]], name: str, read: Callable[[], bytes]) -> None:
    """Add a member to those that are read, unless its name is hidden."""
    tidy = _tidy(name)
    if tidy in files:
        raise ImagesError(f"{source} refused: it has {tidy[:80]!r} twice, and which one counts cannot be told")
    if not _hidden(name):
        files[tidy] = read


def _tidy(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in PurePosixPath(_tidy(name)).parts)
