from __future__ import annotations

import dataclasses
from io import StringIO

import pytest
from rich.console import Console

from edgevit.report.table import show
from edgevit.report.view import make_report
from edgevit.schema.claims import Claim
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import Measurement
from tests.report.sample import SHA, manifest, measurement


def shown(*measurements: Measurement, facts: Manifest | None = None) -> str:
    out = StringIO()
    report = make_report(facts or manifest(), measurements, bundle_sha256=SHA)
    show(report, Console(file=out, width=80, color_system=None))
    return out.getvalue()


def test_one_row_per_branch_and_nothing_is_cut_at_80_columns() -> None:
    text = shown(measurement())
    rows = [line.split() for line in text.splitlines() if line.startswith(("b00", "b01"))]
    assert [row[0] for row in rows] == ["b00_mhsa", "b00_ffn", "b01_mhsa", "b01_ffn"]
    assert "25 %" in text and "2.50 ms" in text and "20.0 µs" in text and "40 kB" in text.replace("40.0", "40")
    assert "removed" in text
    assert "…" not in text


@pytest.mark.parametrize("figure", ["8 of 8 Gemm int8", "420 kB", "400 kB", "n = 1000", "expected", "too few runs"])
def test_the_headline_figures_are_there(figure: str) -> None:
    assert figure in shown(measurement())


def test_an_unmeasured_bundle_says_how_to_measure_it() -> None:
    assert "edgevit profile BUNDLE" in shown()
    assert "edgevit profile BUNDLE" not in shown(measurement())


def test_strings_of_a_manifest_are_no_markup() -> None:
    claim = Claim(name="skip", held=False, summary="[/bold] [red]x[/red]")
    text = shown(facts=dataclasses.replace(manifest(), name="[bold]name", claims=(claim,)))
    assert "[bold]name" in text and "[/bold] [red]x[/red]" in text and "FAILED" in text


EMULATED: dict[str, object] = {
    "paths": (),
    "expected_wall_ms": None,
    "expected_cpu_ms": None,
    "unattributed_time_ms": None,
    "memory": None,
    "process": None,
    "load_ms": None,
    "first_run_ms": None,
    "warnings": ("emulated by qemu: times are withheld",),
}


def test_what_spoils_the_figures_stands_below_them() -> None:
    assert "warning: the governor is [b]ondemand" in shown(measurement(warnings=("the governor is [b]ondemand",)))


def test_an_emulated_machine_shows_no_time() -> None:
    text = shown(measurement(**EMULATED))
    assert "warning: emulated by qemu: times are withheld" in text and "25 %" in text
    assert "expected  " not in text.split("Latency on")[1]


def test_two_devices_stand_one_after_the_other() -> None:
    board = dataclasses.replace(measurement().environment, cpu="Raspberry Pi 5")
    text = shown(measurement(), measurement(environment=board, device="ssh"))
    assert text.count("Latency on") == 2 and "Latency on Raspberry Pi 5" in text
