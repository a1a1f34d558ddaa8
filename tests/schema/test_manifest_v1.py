"""Manifests of schema 1 become those of today; what was any table has a type, or is left out and said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import BundleError
from edgevit.schema.claims import (
    AccuracyFigures,
    AccuracyResult,
    BoundFigures,
    Claim,
    CoverageFigures,
    Figures,
    Fraction,
    OriginalResult,
    ParityFigures,
    PathNodes,
    SkipFigures,
    SkipNodesResult,
)
from edgevit.schema.manifest import BundleFile, Manifest
from edgevit.schema.manifest_file import parse_manifest
from edgevit.schema.manifest_v2 import ADDED
from edgevit.util.strict_json import dumps, to_data
from tests.bundles import PARITY, sample_manifest
from tests.tiny import tiny_program

SHOWN = Path("tiny")
RESULT = PARITY.against_float
FRACTION = Fraction(hits=3, images=4, value=0.75, low=0.3, high=0.95)
ACCURACY = AccuracyResult(
    agreement=FRACTION,
    cosine_mean=0.99,
    cosine_min=0.98,
    top1=None,
    float_top1=None,
    drop=None,
    min_agreement=0.9,
    max_top1_drop=0.01,
)
ORIGINAL = OriginalResult(agreement=FRACTION, compressed_agreement=None, quantized_agreement=FRACTION)
NODES = SkipNodesResult(paths=(PathNodes(effort=0.0, open=2, nodes=40, matrix_kernels=9),))


def today() -> Manifest:
    manifest = sample_manifest(tiny_program(gated=True))
    return dataclasses.replace(manifest, files=(BundleFile(path=manifest.model, bytes=5, sha256="0" * 64),))


def before_schema_3() -> dict[str, Any]:
    """Today's manifest without what schema 3 added to it."""
    data: dict[str, Any] = to_data(today())
    for table, keys in ADDED.items():
        for key in keys:
            inside = data[table] if table else data
            for row in inside if isinstance(inside, list) else [inside]:
                del row[key]
    return data


def old(claims: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A manifest of schema 1 as its JSON says it."""
    data = before_schema_3()
    claims = [{"name": "bound", "held": True, "summary": "5 MB"}] if claims is None else claims
    return {**data, "schema": 1, "claims": claims, **changes}


def parsed(data: Any) -> Manifest:
    return parse_manifest(json.dumps(data).encode(), SHOWN)


@pytest.mark.parametrize(
    ("name", "figures", "typed"),
    [
        ("parity", to_data(RESULT), PARITY),
        (
            "parity",
            {"float": to_data(RESULT), "lowered": to_data(RESULT)},
            ParityFigures(against_float=RESULT, against_lowered=RESULT),
        ),
        (
            "skip",
            {"nodes": to_data(NODES), "time": {"macs_ratio": 0.25}},
            SkipFigures(nodes=NODES, macs_ratio=0.25),
        ),
        ("skip", {"time": {"macs_ratio": 0.25}}, SkipFigures(macs_ratio=0.25)),
        ("coverage", {"int8": 7, "planned": 7, "exceptions": []}, CoverageFigures(int8=7, planned=7)),
        ("bound", {"total_bytes": 500}, BoundFigures(bound_bytes=500)),
        ("bound", {"bound_bytes": 400, "paths": []}, BoundFigures(bound_bytes=400)),
        ("accuracy", to_data(ACCURACY), AccuracyFigures(against_float=ACCURACY)),
        (
            "accuracy",
            {**to_data(ACCURACY), "original": to_data(ORIGINAL)},
            AccuracyFigures(against_float=ACCURACY, against_original=ORIGINAL),
        ),
        ("bound", {}, None),
    ],
)
@pytest.mark.parametrize("where", [{}, {"proven_on": "x86_64"}])
def test_every_form_of_figures_has_its_type(
    name: Any, figures: dict[str, Any], typed: Figures | None, where: dict[str, str]
) -> None:
    data = old([{"name": name, "held": True, "summary": "said", "figures": {**figures, **where}}])
    assert parsed(data).claims == (Claim(name=name, held=True, summary="said", figures=typed, **where),)


def test_everything_else_is_as_today() -> None:
    manifest = parsed(old(claims=[]))
    assert manifest == dataclasses.replace(today(), claims=())
    assert manifest.schema == 3 and json.loads(dumps(manifest))["schema"] == 3


def test_the_first_edgevit_called_the_original_float() -> None:
    data = old()
    for row in data["accuracy"]:
        row["model"] = "float" if row["model"] == "original" else row["model"]
    assert parsed(data).accuracy == today().accuracy


def test_figures_of_no_known_form_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    claims = [
        {"name": "parity", "held": True, "summary": "agrees", "figures": {"largest_error": 2e-6}},
        {"name": "skip", "held": True, "summary": "skips", "figures": {"time": {"ratio": 0.1}}},
        {"name": "bound", "held": True, "summary": "fits", "figures": {"total_bytes": 5}},
    ]
    found = parsed(old(claims)).claims
    assert [(claim.summary, claim.figures) for claim in found] == [
        ("agrees", None),
        ("skips", None),
        ("fits", BoundFigures(bound_bytes=5)),
    ]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["tiny: the figures of parity, skip are of a form that is not known, and left out"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (old([{"name": "speed", "held": True, "summary": ""}]), r"manifest.claims\[0\].name: got 'speed'"),
        (old([{"name": "skip", "summary": ""}]), r"manifest.claims\[0\]: missing key 'held'"),
        (old([{"name": "skip", "held": 1, "summary": ""}]), r"manifest.claims\[0\].held: got 1"),
        (old([{"name": "skip", "held": True, "summary": "", "figures": []}]), r"claims\[0\].figures: got list"),
        (old([{"name": "skip", "held": True, "summary": "", "proven_on": "x"}]), "unknown key 'proven_on'"),
        (old([{"name": "skip", "held": True, "summary": "", "figures": {"proven_on": 3}}]), "proven_on: got 3"),
        (old([5]), r"manifest.claims\[0\]: got int, expected a table"),
        (old(claims=[], surprise=1), "unknown key 'surprise'"),
        (old(claims=[], accuracy="none"), "manifest.accuracy: got 'none', expected a list"),
        (old(claims=[], accuracy=[3]), r"manifest.accuracy\[0\]: got int"),
        (old(claims=[], target={"name": "x"}), "manifest.target: missing key 'description'"),
        (old(claims=[], recipe={"model": "tiny"}), "manifest.recipe: missing key 'weights_sha256'"),
        (
            old(claims=[], runtime_settings={"a": [1]}),
            "settings.a: got a list of 1, expected str or int or bool",
        ),
        (old([{}] * 60_000), "missing key 'name'"),
        ({"schema": 1}, "missing key 'name'"),
        ({"schema": 1, "claims": {}}, "manifest.claims: got a table of 0, expected a list"),
        ({"schema": True}, "schema True; this edgevit reads schema 1, 2 and 3"),
        ({"schema": 1.0}, "schema 1.0; this edgevit reads"),
        ({"schema": 0}, "schema 0; this edgevit reads"),
        ([], "schema None; this edgevit reads"),
    ],
)
def test_what_is_wrong_is_refused_as_ever(data: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        parsed(data)
    assert len(str(caught.value)) < 4000
