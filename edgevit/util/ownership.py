"""What proves to be written by edgevit, whatever its version: nothing else may ever be replaced or removed.

A file by its keys; a folder or archive by its own table of contents, and by holding nothing that is not in it. Contents
are not compared: what somebody changed inside a bundle is still the bundle that --force is about.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgevit.util.bounded import open_zip

Kind = Literal[
    "bundle", "archive", "program", "measurement", "page", "device", "log", "result", "signature", "messages"
]

WORDS: dict[Kind, str] = {
    "bundle": "a bundle",
    "archive": "the .zip of a bundle",
    "program": "a Program",
    "measurement": "a measurement of `edgevit profile`",
    "page": "a page of `edgevit report`",
    "device": "an emulated device",
    "log": "the log of a training run",
    "result": "the result of a training run",
    "signature": "the signature of a bundle",
    "messages": "a file of messages of edgevit",
}
MANIFEST, PROGRAM, WEIGHTS, RECORD = "manifest.json", "program.json", "weights.safetensors", "device.json"
DEVICE_FILES = (RECORD, "root", "site", "host", "pycache", "count.so", "heap.so", "counts")
LIMIT_BYTES = 64 << 20
PAGE_BYTES = 4096
PAGE = re.compile(rb'<meta name="generator" content="edgevit |: edgevit report</title>')
LOG = b"step,stage,loss,rate,gradient,"  # its first line begins so
MESSAGES = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.+]+ DEBUG edgevit ")  # and that of --log-file
SIGNED = "https://model_signing/signature/"  # the kind of statement that a bundle's signature is over
SHOWN = 20


def foreign(path: Path, kind: Kind) -> list[str]:
    """Names of what is at `path` (which exists) and is not of this kind, at most some; none: all of it is ours."""
    if kind in ("bundle", "program", "device"):
        if not _is(path, stat.S_ISDIR):
            return [path.name]
        return list(_first(_in_folder(path, kind)))
    if not _is(path, stat.S_ISREG):
        return [path.name]
    if kind == "archive":
        return _in_archive(path)
    return [] if _is_file_of(path, kind) else [path.name]


def bundle_around(path: Path) -> Path | None:
    """Return the folder of a bundle that a path lies in, which a file more would damage; None: it lies in none."""
    return next((parent for parent in path.absolute().parents if _members(_json(parent / MANIFEST)) is not None), None)


def _in_folder(path: Path, kind: Kind) -> Iterator[str]:
    if kind == "bundle":
        listed = _members(_json(path / MANIFEST))
        yield from _top(path) if listed is None else _unlisted(path, listed)
    elif kind == "program":
        found = _json(path / PROGRAM)
        ours = _has(found, schema=int, storage=str, spec=dict)
        yield from _unlisted(path, {PROGRAM, WEIGHTS}) if ours else _top(path)
    else:
        found = _json(path / RECORD)
        ours = _has(found, schema=int, made_from=str, emulator=str, packages=dict)
        yield from (name for name in _top(path) if not ours or name not in DEVICE_FILES)


def _in_archive(path: Path) -> list[str]:
    try:
        with open_zip(path) as archive:
            names = archive.namelist()
            root = zip_root(names)
            if root + MANIFEST not in names or archive.getinfo(root + MANIFEST).file_size > LIMIT_BYTES:
                return names[:SHOWN] or [path.name]
            listed = _members(json.loads(archive.read(root + MANIFEST)))
    except (OSError, ValueError, RuntimeError, NotImplementedError, RecursionError, EOFError, zipfile.BadZipFile):
        return [path.name]
    return (
        names[:SHOWN]
        if listed is None
        else [name for name in names if not name.endswith("/") and name.removeprefix(root) not in listed][:SHOWN]
    )


def zip_root(names: Sequence[str]) -> str:
    """Return the folder in a bundle's zip, with its slash, that all members lie in; '' where they lie at the top."""
    tops = {name.partition("/")[0] for name in names}
    top = f"{next(iter(tops))}/" if len(tops) == 1 else ""
    return top if top + MANIFEST in names else ""


def _is_file_of(path: Path, kind: Kind) -> bool:
    if kind in ("page", "log", "messages"):
        try:
            with path.open("rb") as file:
                start = file.read(PAGE_BYTES)
        except OSError:
            return False
        if kind == "messages":
            return not start or MESSAGES.match(start) is not None
        # A log may have been cut short in its first line.
        return bool(PAGE.search(start)) if kind == "page" else start.startswith(LOG) or LOG.startswith(start)
    found = _json(path)
    if kind == "measurement":
        return _has(found, schema=int, bundle=str, bundle_sha256=str, edgevit=str, paths=list)
    if kind == "signature":
        return _has(found, mediaType=str, verificationMaterial=dict, dsseEnvelope=dict) and _signs_bundle(found)
    return _has(found, program=str, dense=dict, compressed=dict, expected_budget=float, versions=dict)


def _signs_bundle(signature: Any) -> bool:
    """Return whether a signature is over the files of a bundle; others, of containers say, look the same outside."""
    try:
        statement = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
        ours = str(statement["predicateType"]).startswith(SIGNED)
        return ours and any(resource["name"] == MANIFEST for resource in statement["predicate"]["resources"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _members(manifest: Any) -> set[str] | None:
    """Return all files of the bundle with this manifest; None if it is no bundle's."""
    if not _has(manifest, schema=int, name=str, backend=str, model=str, tools=dict, files=list):
        return None
    if "edgevit" not in manifest["tools"]:
        return None
    files = manifest["files"]
    if not all(_has(file, path=str, bytes=int, sha256=str) for file in files):
        return None
    return {MANIFEST, *(file["path"] for file in files)}


def _unlisted(folder: Path, listed: Collection[str]) -> Iterator[str]:
    """Yield what lies in a folder and is not listed; folders that hold nothing listed are not looked into."""
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    waiting = ["."]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = (PurePosixPath(inside) / entry.name).as_posix()
                if entry.is_dir(follow_symlinks=False) and name in folders:
                    waiting.append(name)
                elif name not in listed or not entry.is_file(follow_symlinks=False):
                    yield name


def _top(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from sorted(entry.name for entry in entries)


def _first(names: Iterator[str]) -> Iterator[str]:
    """Yield enough of them to tell; the folder itself where it cannot be read."""
    try:
        for _, name in zip(range(SHOWN), names, strict=False):
            yield name
    except OSError as error:
        yield f"a folder that cannot be read ({error.strerror})"


def _json(path: Path) -> Any:
    """Return a JSON file's content; None if it is none, or too large to be ours."""
    try:
        if not _is(path, stat.S_ISREG) or path.lstat().st_size > LIMIT_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _has(data: Any, **kinds: type) -> bool:
    """Return whether it is an object with values of these types; true and false are no numbers."""
    if not isinstance(data, dict):
        return False
    return all(isinstance(data.get(name), kind) and not isinstance(data[name], bool) for name, kind in kinds.items())


def _is(path: Path, test: Any) -> bool:
    try:
        return bool(test(path.lstat().st_mode))
    except OSError:
        return False
