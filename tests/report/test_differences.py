"""Builds of one model side by side: names that tell them apart, and what differs before all else."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgevit.cli import main
from edgevit.report.differences import SAME, bundle_names, differences
from edgevit.report.html import render
from edgevit.report.table import show
from edgevit.report.view import make_report
from edgevit.schema.manifest import Manifest
from tests.bundles import RECIPE, sample_bundle, sample_manifest
from tests.report.sample import SHA, manifest, measurement
from tests.tiny import tiny_program


def made(**recipe: Any) -> Manifest:
    return dataclasses.replace(manifest(), recipe=dataclasses.replace(RECIPE, **recipe))


def values(*manifests: Manifest) -> dict[str, tuple[str, ...]]:
    return {row.what: row.values for row in differences(manifests)}


def test_what_was_asked_for_and_what_came_of_it() -> None:
    assert values(made(), made()) == {}
    asked = made(prune=0.3, weights_sha256="2" * 64, classes=(1, 2))
    assert values(made(), asked) == {
        "weights sha256": ("1" * 12, "2" * 12),
        "prune": ("0.0", "0.3"),
        "classes": ("–", "1, 2"),
    }
    other = dataclasses.replace(asked, sizes=dataclasses.replace(asked.sizes, model_bytes=50_000))
    assert values(asked, other) == {"size": ("100 kB", "50.0 kB")}


def test_targets_runtimes_and_bits() -> None:
    here, there = manifest(), sample_manifest(tiny_program(gated=True), "openvino")
    here = dataclasses.replace(here, target=dataclasses.replace(here.target, weight_bits=7))
    told = values(here, there)
    assert told["target"] == ("x86-64-onnxruntime", "x86-64-openvino")
    assert told["runtime"] == ("onnxruntime", "openvino")
    assert told["weight bits"] == ("7", "8")
    assert "description" not in told and "reasons" not in told and "made with onnxruntime" in told


def test_agreements_with_two_models_are_two_rows() -> None:
    """One does not stand for the other, whichever came last."""
    facts = manifest()
    (agreed,) = [row for row in facts.accuracy if row.metric == "agreement"]
    for against in (0.8, 0.9):
        rows = (dataclasses.replace(agreed, against="original", value=against), agreed)
        told = values(facts, dataclasses.replace(facts, accuracy=rows))
        assert [name for name in told if name.startswith("agreement")] == ["agreement with original, bundle"]
        assert told["agreement with original, bundle"][1].startswith(f"{100 * against:.1f} %")


def test_budgets_are_named_with_their_units() -> None:
    facts = manifest()
    asked = dataclasses.replace(facts, target=dataclasses.replace(facts.target, ram_mb=64.0, latency_ms=30.0))
    assert values(facts, asked) == {"budget of RAM, MB": ("–", "64.0"), "budget of time, ms": ("–", "30.0")}


def test_names_tell_bundles_apart() -> None:
    assert bundle_names([Path("out/a"), Path("out/b.zip")]) == ("a", "b")
    assert bundle_names([Path("one/deit"), Path("two/deit.zip"), Path("x")])[:2] == ("one/deit", "two/deit")
    assert bundle_names([Path("out/a"), Path("out/a.zip")]) == ("out/a", "out/a.zip")


def test_they_come_first_in_the_terminal_and_on_the_page() -> None:
    report = make_report(
        made(), [measurement()], bundle_sha256=SHA, others=[(made(prune=0.3), [])], names=("one <b>", "[red]two")
    )
    out = io.StringIO()
    show(report, Console(file=out, width=120))
    shown, page = out.getvalue(), render(report)
    assert shown.index("What differs") < shown.index("one <b>") < shown.index("prune") < shown.index("size")
    assert "[red]two" in shown
    assert page.index("<h2>What differs</h2>") < page.index("one &lt;b&gt;") < page.index('class="tiles"')
    assert "What differs" not in render(make_report(made()))
    alike = make_report(made(), others=[(made(), [])], names=("a", "b"))
    show(alike, Console(file=out, width=200))
    assert SAME in out.getvalue() and SAME in render(alike)


def test_the_command_names_two_builds_by_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = sample_bundle(tmp_path / "one", changes={"recipe": RECIPE})
    two = sample_bundle(
        tmp_path / "two", changes={"recipe": dataclasses.replace(RECIPE, prune=0.5, weights_sha256="2" * 64)}
    )
    assert main(["report", str(one), str(two), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bundles"] == ["one", "two"]
    assert {"what": "prune", "values": ["0.0", "0.5"]} in told["differences"]
    assert main(["report", str(one), f"{two}.zip"]) == 0
    assert "What differs" in capsys.readouterr().out
    assert main(["report", str(one), f"{one}.zip"]) == 19
    assert "given twice" in capsys.readouterr().err
    other = sample_bundle(tmp_path / "other", changes={"recipe": dataclasses.replace(RECIPE, model="deit")})
    assert main(["report", str(one), str(other)]) == 19
    assert "other was built of deit, one of tiny" in capsys.readouterr().err
