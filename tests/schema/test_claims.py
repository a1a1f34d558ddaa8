"""Figures are of the type of their claim, in Python and in JSON."""

from __future__ import annotations

import pytest

from edgevit.schema.claims import (
    FIGURES,
    BoundFigures,
    Claim,
    CoverageFigures,
    PlannedException,
    SkipFigures,
    figures_of,
)
from edgevit.util.strict_json import from_data, to_data
from tests.bundles import sample_manifest
from tests.tiny import tiny_program

COVERAGE = CoverageFigures(
    int8=7, planned=7, exceptions=(PlannedException(name="b00_ffn.fc2", int8=True, outliers=2, why="wide columns"),)
)


@pytest.mark.parametrize("figures", [COVERAGE, None])
def test_a_claim_is_read_as_it_was_written(figures: CoverageFigures | None) -> None:
    claim = Claim(name="coverage", held=True, summary="7 of 7 Gemm int8", figures=figures, proven_on="x86_64")
    faults: list[str] = []
    assert from_data(Claim, to_data(claim), faults) == claim and not faults


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_another_claim_are_refused(name: str) -> None:
    figures = SkipFigures(macs_ratio=0.25) if name != "skip" else BoundFigures(bound_bytes=5)
    with pytest.raises(TypeError, match=f"the claim '{name}' got figures of type {type(figures).__name__}, allowed: "):
        Claim(name=name, held=True, summary="", figures=figures)  # type: ignore[arg-type]
    faults: list[str] = []
    data = {"name": name, "held": True, "summary": "", "figures": to_data(figures)}
    assert from_data(Claim, data, faults, "claim") is None
    assert any(fault.startswith("claim.figures: unknown key") for fault in faults)


def test_a_fault_in_figures_is_named_by_its_place() -> None:
    data = to_data(Claim(name="coverage", held=True, summary="", figures=COVERAGE))
    data["figures"]["exceptions"][0]["outliers"] = "two"
    faults: list[str] = []
    assert from_data(Claim, data, faults, "claim") is None
    assert faults == ["claim.figures.exceptions[0].outliers: got 'two', expected int"]
    unknown: list[str] = []
    assert from_data(Claim, data | {"name": "speed"}, unknown, "claim") is None
    assert len(unknown) == 1 and unknown[0].startswith("claim.name: got 'speed', allowed: 'parity', ")


def test_figures_are_found_by_their_type() -> None:
    claims = sample_manifest(tiny_program()).claims
    found = figures_of(claims, CoverageFigures)
    assert found is not None and found.planned == 8
    assert figures_of(claims, SkipFigures) is None
