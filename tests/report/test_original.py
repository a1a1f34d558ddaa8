"""The first screen says what was lost against the original, by which step, or that it is not known."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from edgevit.report import original
from edgevit.report.html import render
from edgevit.report.table import show
from edgevit.report.view import make_report
from tests.bundles import RECIPE
from tests.report.sample import manifest
from tests.report.test_view import AGREED, TOP1, kept

SHORT = "when compressed, top-1 75.1 → 68.1 % (n = 1000)"
N = "n = 8, 0 to 100 % with 95 % confidence"
WHEN = "hen it was compressed: top-1 75.1 -> 68.1 %, agreement 78.2 % on 1000 images of val.tar"


def facts(*rows: Any, **changes: Any) -> Any:
    return dataclasses.replace(manifest(), **{"original": kept(), "accuracy": rows, **changes})


@pytest.mark.parametrize(
    ("made", "tile"),
    [
        (
            facts(*TOP1, *AGREED),
            ("Top-1", "67.5 %", "original 75.1 %, -7.6 points (n = 8): -7.0 by compression, -0.6 by quantization"),
        ),
        (
            facts(TOP1[0], TOP1[2], AGREED[1], original=None),
            ("Top-1", "67.5 %", "original 75.1 %, -7.6 points (n = 8)"),
        ),
        (
            facts(*TOP1[1:], AGREED[2]),
            (
                "Top-1",
                "67.5 %",
                f"compressed float model 68.1 %, -0.6 points (n = 8); original not known on these images; {SHORT}",
            ),
        ),
        (
            facts(*AGREED),
            (
                "Agreement with the original",
                "75.0 %",
                f"{N}, with the compressed float model 90.0 %; {SHORT}",
            ),
        ),
        (
            facts(AGREED[2]),
            (
                "Agreement with compressed float",
                "90.0 %",
                f"{N}; original not known on these images; {SHORT}",
            ),
        ),
        (facts(), ("Accuracy", "–", "not measured")),
    ],
)
def test_the_tile_is_original_against_bundle(made: Any, tile: tuple[str, str, str]) -> None:
    report = make_report(made)
    assert original.tile(report) == tile
    assert tile[2] in render(report)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (facts(*TOP1, *AGREED), ""),
        (facts(*AGREED), f"W{WHEN}."),
        (
            facts(AGREED[2]),
            f"Against the original: not known on these images; w{WHEN}; --original MODEL compares here.",
        ),
    ],
)
def test_what_the_rows_do_not_show_is_said_beside_them(made: Any, said: str) -> None:
    report = make_report(made)
    assert original.remark(report) == said
    assert said in render(report).replace("&gt;", ">")
    console = Console(file=io.StringIO(), width=300)
    show(report, console)
    assert said in console.file.getvalue()  # type: ignore[attr-defined]


def test_how_it_was_made_names_the_original_and_only_what_this_build_did() -> None:
    recipe = dataclasses.replace(RECIPE, gate=1.0, compression=("pruned by 10%", "gated to 95%"))
    page = render(make_report(facts(*AGREED, recipe=recipe)))
    assert "<dt>compression</dt><dd>pruned by 10%; gated to 95%</dd>" in page
    assert "<dt>prune</dt>" not in page and "<dt>gate</dt>" not in page
    assert "<dt>original&#39;s cost</dt><dd>5 MACs, 7 parameters, 28 B float32</dd>" in page
    assert "<dt>1000 images of val.tar</dt><dd>top-1 of the original 75.1 %, top-1 when compressed 68.1 %" in page
    assert "<dt>gate</dt><dd>0.9</dd>" in render(make_report(facts(recipe=dataclasses.replace(recipe, gate=0.9))))
