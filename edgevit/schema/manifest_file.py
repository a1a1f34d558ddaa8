"""Reads the text of a `manifest.json`, whoever wrote it: of today's schema, or of an older one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edgevit.errors import BundleError
from edgevit.schema import manifest_v1, manifest_v2
from edgevit.schema.manifest import MANIFEST_SCHEMA, Manifest
from edgevit.util import limits, strict_json
from edgevit.util.progress import warn

MANIFEST = "manifest.json"
READ = (manifest_v1.SCHEMA, manifest_v2.SCHEMA, MANIFEST_SCHEMA)


def parse_manifest(raw: bytes, shown: Path) -> Manifest:
    """Return what the text says; it is checked, but no file of the bundle is.

    Args:
        raw: the text.
        shown: the bundle, for messages.

    Raises:
        BundleError: it is no manifest of a schema that is read, or has faults: the message lists them.
    """
    try:
        data = strict_json.parse(raw)
    except ValueError as error:
        raise BundleError(
            f"{shown}: {MANIFEST} is not JSON that can be read ({error}); copy or build the bundle again"
        ) from None
    faults: list[str] = []
    data = _of_today(data, shown, faults)
    files = data.get("files")
    if isinstance(files, list) and len(files) > limits.ARCHIVE_MEMBERS.value:
        raise BundleError(f"{shown}: {MANIFEST} lists {len(files)} files, allowed: {limits.ARCHIVE_MEMBERS}")
    manifest = strict_json.from_data(Manifest, data, faults, "manifest")
    if manifest is not None and not faults:
        faults = list(_contradictions(manifest))
        if manifest.sha256 and not strict_json.seal_holds(raw, manifest.sha256):
            faults.append("it was changed since it was written: its sha256 is another")
    if manifest is None or faults:
        raise BundleError(with_faults(f"{shown}: {MANIFEST} has faults:", faults))
    return manifest


def _of_today(data: Any, shown: Path, faults: list[str]) -> dict[str, Any]:
    """Return the table with the names of today's schema, and say what of an older one is left out."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(data, dict) or isinstance(schema, bool) or not isinstance(schema, int) or schema not in READ:
        known = f"{', '.join(map(str, READ[:-1]))} and {READ[-1]}"
        newer = isinstance(schema, int) and schema > MANIFEST_SCHEMA
        how = "a newer edgevit wrote it, so update edgevit" if newer else "build it again"
        raise BundleError(f"{shown} has schema {strict_json.shown(schema)}; this edgevit reads schema {known}; {how}")
    if schema == MANIFEST_SCHEMA:
        return data
    if schema == manifest_v1.SCHEMA:
        data, left_out = manifest_v1.upgraded(data, manifest_v2.SCHEMA, faults)
        if left_out:
            warn(f"{shown}: the figures of {', '.join(left_out)} are of a form that is not known, and left out")
    return manifest_v2.upgraded(data, MANIFEST_SCHEMA, faults)


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield what types cannot say: names that mean nothing here, or lead out of the bundle."""
    names = [file.path for file in manifest.files]
    yield from (f"{name!r} leads out of the bundle" for name in names if not is_plain(name))
    used = {manifest.model, *manifest.models.values(), *([manifest.labels] if manifest.labels else [])}
    used |= {name for case in manifest.golden for name in case.files}
    yield from (f"{name!r} is used but not among the files" for name in sorted(used - set(names)))
    outputs = {output.name for output in manifest.outputs}
    needed = ("logits", "gates", *(["tokens"] if any(case.tokens for case in manifest.golden) else []))
    yield from (f"no output {name!r}" for name in needed if name not in outputs)
    called = [point.name for point in manifest.points if point.name is not None]
    if len(set(called)) != len(called):
        yield "points: a name is there twice"
    if len(set(names)) != len(names):
        yield "a file is listed twice"
    target = manifest.target
    if not 1 <= target.threads <= limits.THREADS.value:
        yield f"target: threads is {target.threads}, allowed: 1 to {limits.THREADS.value}"
    if target.backend != manifest.backend:
        yield f"target: its backend is {target.backend!r}, the bundle's is {manifest.backend!r}"


def is_plain(name: str) -> bool:
    """Return whether a member's name stays inside the bundle on every system."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and "/".join(parts) == name and ".." not in parts and not name.startswith("/")
    return plain and not any(c in name for c in "\\:\0")


def with_faults(headline: str, faults: list[str]) -> str:
    """Return a message with its faults below, the first of many."""
    return "\n".join([headline, *(f"  - {fault}" for fault in strict_json.first(faults, 20))])
