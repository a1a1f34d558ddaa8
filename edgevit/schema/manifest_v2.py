"""Manifests of schema 2, which edgevit wrote until bundles had operating points: read as those of today.

Every table only grew: what schema 3 adds has a default that says what schema 2 knew of it, nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA = 2
# Keys that schema 3 added, by table ('': the manifest itself): in a manifest of schema 2 nobody wrote them.
ADDED: dict[str, tuple[str, ...]] = {
    "": ("points", "tokens"),
    "target": ("ram_mb", "flash_mb", "latency_ms", "drop_points", "cc", "sysroot", "libc", "int16_products"),
    "golden": ("tokens",),
}


def upgraded(data: Mapping[str, Any], schema: int, faults: list[str]) -> dict[str, Any]:
    """Return a manifest of schema 2 as `schema` says the same.

    Args:
        data: what `manifest.json` holds, from whoever wrote it.
        schema: today's.
        faults: keys that schema 2 does not have are added.
    """
    for table, keys in ADDED.items():
        inside = data.get(table) if table else data
        rows = inside if isinstance(inside, list) else [inside]
        found = [key for key in keys if any(isinstance(row, Mapping) and key in row for row in rows)]
        where = f"manifest.{table}" if table else "manifest"
        faults += [f"{where}: {key!r} is not a key of schema {SCHEMA}" for key in found]
    return {**data, "schema": schema}
