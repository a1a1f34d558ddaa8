"""Manifests of schema 1, which edgevit wrote until claims had figures of a type: read as those of today.

Only these differ: a claim's figures were any table, with the machine that it was proven on among them, and the first
edgevit called the original model 'float' in the rows of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgevit.schema.claims import FIGURES, ClaimName
from edgevit.util import strict_json

SCHEMA = 1
ENOUGH_FAULTS = 100


@dataclass(frozen=True, kw_only=True)
class ClaimV1:
    """A claim as schema 1 has it."""

    name: ClaimName
    held: bool | None
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)


def upgraded(data: Mapping[str, Any], schema: int, faults: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a manifest of schema 1 as `schema` says the same, and the claims whose figures are of no known form.

    Those figures are left out; everything else is kept as it is, right or wrong, for the strict reader to judge.

    Args:
        data: what `manifest.json` holds, from whoever wrote it.
        schema: today's.
        faults: what is wrong with the claims is added.
    """
    left_out: list[str] = []
    changed = {**data, "schema": schema}
    if isinstance(data.get("claims"), list):
        changed["claims"] = []
        for index, claim in enumerate(data["claims"]):
            old = strict_json.from_data(ClaimV1, claim, faults, f"manifest.claims[{index}]")
            changed["claims"] += [_claim(old, left_out)] if old else []
            if len(faults) >= ENOUGH_FAULTS:
                break
    if isinstance(data.get("accuracy"), list):
        changed["accuracy"] = [_row(row) for row in data["accuracy"]]
    return changed, tuple(dict.fromkeys(left_out))


def _row(row: Any) -> Any:
    return {**row, "model": "original"} if isinstance(row, Mapping) and row.get("model") == "float" else row


def _claim(old: ClaimV1, left_out: list[str]) -> dict[str, Any]:
    """Return a claim with figures of its type, and beside them where it was proven."""
    figures = _figures(old.name, {key: value for key, value in old.figures.items() if key != "proven_on"})
    if figures is not None and strict_json.from_data(FIGURES[old.name], figures, []) is None:
        left_out.append(old.name)
        figures = None
    proven_on = old.figures.get("proven_on")
    return {"name": old.name, "held": old.held, "summary": old.summary, "figures": figures, "proven_on": proven_on}


def _figures(name: ClaimName, figures: dict[str, Any]) -> dict[str, Any] | None:
    """Return the figures of a claim as its type has them; what is of another form stays as it is."""
    if not figures:
        return None
    if name == "parity":
        both = figures.keys() == {"float", "lowered"}
        return {"against_float": figures["float"] if both else figures, "against_lowered": figures.get("lowered")}
    if name == "skip" and isinstance(figures.get("time"), Mapping) and figures["time"].keys() == {"macs_ratio"}:
        return {"macs_ratio": figures["time"]["macs_ratio"], **{k: v for k, v in figures.items() if k != "time"}}
    if name == "bound" and figures.keys() == {"total_bytes"}:
        return {"bound_bytes": figures["total_bytes"]}
    if name == "accuracy":
        against_float = {key: value for key, value in figures.items() if key != "original"}
        return {"against_float": against_float, "against_original": figures.get("original")}
    return figures
