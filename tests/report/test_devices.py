"""Devices of one Program side by side, from several bundles."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgevit.cli import main
from edgevit.errors import BundleError
from edgevit.report.devices import device_rows, rows
from edgevit.report.html import render
from edgevit.report.table import show
from edgevit.report.view import make_report
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import (
    CycleEstimate,
    Emulation,
    GoldenParity,
    Measurement,
    PathCycles,
    PathInstructions,
)
from tests.bundles import rewrite, sample_bundle
from tests.report.sample import ENVIRONMENT, SHA, manifest, measurement

OTHER = "cd" * 32
GOLDEN = GoldenParity(path="real", logit_error=0.25, allowed=0.5)
EMULATION = Emulation(
    emulator="qemu-aarch64 7.2.22",
    cpu="cortex-a76",
    golden=(GOLDEN,),
    instructions=(
        PathInstructions(path="real", effort=0.0, branches_open=1, images=1, total=2.5e8, classes={"other": 2.5e8}),
    ),
    arena_peak_bytes=300_000,
    arena_bytes=395_000,
    estimate=CycleEstimate(
        tool="llvm-mca",
        core="neoverse-n1",
        covered=0.99,
        assumptions=(),
        paths=(PathCycles(path="real", images=1, lower_cycles=1e8, hits_cycles=2e8, upper_cycles=4e8, misses=(1, 1)),),
    ),
)


def emulated() -> Measurement:
    machine = dataclasses.replace(ENVIRONMENT, cpu="cortex-a76, emulated", emulated_by="qemu-aarch64 7.2.22")
    return measurement(
        bundle_sha256=OTHER,
        device="qemu",
        environment=machine,
        paths=(),
        expected_wall_ms=None,
        expected_cpu_ms=None,
        memory=None,
        process=None,
        emulation=EMULATION,
    )


def built(target: str, **recipe: Any) -> Manifest:
    facts = manifest()
    return dataclasses.replace(
        facts,
        target=dataclasses.replace(facts.target, name=target),
        recipe=dataclasses.replace(facts.recipe, **recipe),
    )


def test_a_row_per_device_in_terms_of_what_it_can_tell() -> None:
    golden = dataclasses.replace(GOLDEN, gates_equal=False)
    here = measurement(device="ssh", golden=(GOLDEN, golden))
    told = list(rows(device_rows([(built("rpi4"), [here]), (built("rpi5"), [emulated()])])))
    assert told[0][:5] == ["Great CPU 9000 over ssh", told[0][1], "10.0 ms", "1.00 ms", "4.00 ms"]
    threads = measurement(environment=dataclasses.replace(ENVIRONMENT, threads=2))
    assert next(rows(device_rows([(built("rpi4"), [threads])])))[4] == "4.40 ms"
    board = measurement(device="ssh", environment=dataclasses.replace(ENVIRONMENT, emulated_by="qemu"))
    assert next(rows(device_rows([(built("rpi4"), [board])])))[0] == "Great CPU 9000, emulated over ssh"
    assert told[0][1].startswith("tiny: rpi4 (") and told[0][5] == "390 kB" and told[0][7] == "other gates"
    assert told[1] == [
        "cortex-a76, emulated",
        told[0][1].replace("rpi4", "rpi5"),
        "–",
        "–",
        "250 M instr",
        "300 kB",
        "395 kB",
        "within 0.25",
    ]


def test_they_are_shown_when_there_are_several() -> None:
    one = make_report(built("rpi4"), [measurement()], bundle_sha256=SHA)
    two = make_report(built("rpi4"), [measurement()], bundle_sha256=SHA, others=[(built("rpi5 <b>"), [emulated()])])
    assert two.devices[1].cycles == (1e8, 4e8) and two.measurements == one.measurements
    for report, shown in ((one, False), (two, True)):
        out = io.StringIO()
        show(report, Console(file=out, width=200))
        assert ("Devices of this model" in out.getvalue()) is shown
        page = render(report)
        assert ("rpi5 &lt;b&gt;" in page) is ("100 M to 400 M" in page) is shown


def test_another_model_is_refused() -> None:
    with pytest.raises(BundleError, match="^b was built of other, a of tiny: builds of one model can be compared"):
        device_rows([(built("rpi4"), []), (built("rpi5", model="other"), [])], ["a", "b"])


def test_the_command_takes_several_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (sample_bundle(tmp_path / name) for name in ("a", "b"))
    data = json.loads((second / "manifest.json").read_text())
    data["target"]["name"] = "another-target"
    rewrite(second, data)
    files = []
    for folder in (first, second):
        out = tmp_path / f"{folder.name}.json"
        assert main(["profile", str(folder), "--runs", "2", "-o", str(out)]) == 0
        files.append(str(out))
    capsys.readouterr()
    assert main(["report", str(first), *files]) == 19
    assert "give that bundle too" in capsys.readouterr().err
    assert main(["report", str(first), files[1], files[0], str(second), "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert [row["target"] for row in devices][1] == "another-target" and len(devices) == 2
    assert all(row["gates_equal"] and row["time_ms"]["real"] > 0 for row in devices)
