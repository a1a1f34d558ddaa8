"""Bundles of one model side by side: what they are called, and what differs between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.report import text as say
from edgevit.schema.manifest import Manifest
from edgevit.util import strict_json

MEANING = "Everything below this table is of the first bundle, except the rows of devices."
SAME = "They were built alike: nothing in how they were made differs."
# Words of a target file for people; what they say is in the other keys.
PROSE = ("name", "description", "reasons", "isa")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not the same in all bundles; one value per bundle, in their order."""

    what: str
    values: tuple[str, ...]


def bundle_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a name for every bundle: that of its folder or zip, with as many parents as tell them apart."""
    parts = [tuple(map(strict_json.utf8, path.absolute().parts)) for path in paths]
    parts = [(*whole[:-1], whole[-1].removesuffix(".zip")) for whole in parts]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = tuple("/".join(whole[-count:]) for whole in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(strict_json.utf8(str(path)) for path in paths)


def differences(manifests: Sequence[Manifest], *, figures: bool = True) -> tuple[Difference, ...]:
    """Return what differs: target, how it was made, with what, and the figures that came of it, if asked for."""
    facts = [dict((*_made(manifest), *(_figures(manifest) if figures else ()))) for manifest in manifests]
    every = dict.fromkeys(what for one in facts for what in one)
    rows = (Difference(what=what, values=tuple(one.get(what, say.UNKNOWN) for one in facts)) for what in every)
    return tuple(row for row in rows if len(set(row.values)) > 1)


def _made(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "target", manifest.target.name
    yield "runtime", manifest.backend
    target = strict_json.to_data(manifest.target)
    yield from _flat("", {key: value for key, value in target.items() if key not in (*PROSE, "backend")})
    yield from _flat("", strict_json.to_data(manifest.recipe))
    yield from _flat("made with ", manifest.tools)
    yield from _flat("weights, ", manifest.origin)
    yield "classes in all", str(next((output.shape[-1] for output in manifest.outputs if output.name == "logits"), ""))


def _figures(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "size", say.size(manifest.sizes.model_bytes)
    yield "MACs, expected", say.count(manifest.macs.expected)
    yield "MACs, all open", say.count(manifest.macs.all_open)
    yield "memory bound" if manifest.bound.proven else "memory, not proven", say.size(manifest.bound.bound_bytes)
    yield "gated branches", str(sum(branch.gated for branch in manifest.branches))
    yield "int8 Linears", str(sum(branch.int8_linears for branch in manifest.branches))
    for row in manifest.accuracy:
        path = "" if row.path == "real" else f", {say.PATH_NAMES[row.path]}"
        yield f"{say.metric(row)}, {row.model}{path}", say.interval(row)


def _flat(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{say.key(key)}"
        if isinstance(value, Mapping):
            yield from _flat(f"{name}, ", value)
        else:
            yield name, _shown(value)


def _shown(value: Any) -> str:
    if value in (None, "", [], ()):
        return say.UNKNOWN
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return value[:12]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
