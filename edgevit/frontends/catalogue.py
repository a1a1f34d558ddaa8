"""The table of models that fit, and of those that do not with the reason; read without torch.

`python -m edgevit.frontends.catalogue_rows` tries every name again and rewrites `catalogue.json`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from edgevit.util import strict_json

FILE = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model: whether it fits, why not, and its size at its default input (MACs as the literature counts them).

    `license` is what timm states for the weights that the name's tag stands for; '' where it states none.
    """

    name: str
    fits: bool
    reason: str = ""
    height: int = 0
    width: int = 0
    patch: int = 0
    classes: int = 0
    license: str = ""
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All entries, and the version of timm they were tried with."""

    timm: str
    models: tuple[Entry, ...]


def read_catalogue(file: Path = FILE) -> Catalogue:
    """Return the table that ships with edgevit."""
    faults: list[str] = []
    catalogue = strict_json.from_data(Catalogue, json.loads(file.read_text()), faults, file.name)
    if catalogue is None:
        raise ValueError(f"{file} has faults: {'; '.join(faults)}")
    return catalogue


def catalogue_text(catalogue: Catalogue) -> str:
    """Return the file's text: one row a line, without the fields that have their default."""
    defaults = {f.name: f.default for f in dataclasses.fields(Entry)}
    entries = (strict_json.to_data(entry) for entry in catalogue.models)
    rows = ",\n".join(json.dumps({k: v for k, v in row.items() if v != defaults[k]}) for row in entries)
    return f'{{"timm": {json.dumps(catalogue.timm)}, "models": [\n{rows}\n]}}\n'
