"""Times of a machine that is not the bundle's device never stand where the device's would."""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgevit.cli import main
from edgevit.report.devices import device_rows
from edgevit.report.html import render
from edgevit.report.table import show
from edgevit.report.view import make_report
from edgevit.schema.manifest import Manifest
from edgevit.schema.measurement import not_the_device
from edgevit.schema.target import Target, load_target
from tests.bundles import sample_bundle
from tests.report.sample import ENVIRONMENT, SHA, manifest, measurement

PI = load_target("rpi5-onnxruntime")
SAID = (
    "measured on Great CPU 9000 (x86_64), which is not the device this was built for: Raspberry Pi 5 (Cortex-A76, dot "
    "product), ONNX Runtime on the CPU"
)


def built_for(target: Target) -> Manifest:
    facts = manifest()
    return dataclasses.replace(facts, target=target)


def text(facts: Manifest) -> str:
    out = io.StringIO()
    show(make_report(facts, [measurement()], bundle_sha256=SHA), Console(file=out, width=400))
    return out.getvalue()


@pytest.mark.parametrize(
    ("target", "machine", "said"),
    [
        ({"arch": "x86_64", "requires_flags": ()}, {}, ""),
        ({"arch": "x86_64", "requires_flags": ("avx2", "avx512_vnni|fma", "bmi1")}, {}, ""),
        ({"arch": "x86_64", "requires_flags": ("avx512_vnni|avx_vnni",)}, {}, "without avx512_vnni|avx_vnni)"),
        ({"arch": "x86_64", "requires_flags": ("avx512_vnni",)}, {"isa": ()}, ""),
        ({"arch": "aarch64", "requires_flags": ("asimd",)}, {}, "Great CPU 9000 (x86_64), which is not the device"),
        ({"arch": "aarch64", "requires_flags": ("asimd",)}, {"arch": "arm64", "isa": ("asimd",)}, ""),
        (
            {"arch": "aarch64", "requires_flags": ("asimddp",)},
            {"arch": "aarch64", "isa": ("asimd",)},
            "without asimddp",
        ),
    ],
)
def test_another_architecture_or_fewer_instructions(target: dict[str, Any], machine: dict[str, Any], said: str) -> None:
    told = not_the_device(dataclasses.replace(PI, **target), dataclasses.replace(ENVIRONMENT, **machine))
    assert said in told and bool(said) == bool(told)


def test_the_page_has_no_headline_time_of_another_machine() -> None:
    page = render(make_report(built_for(PI), [measurement()], bundle_sha256=SHA))
    head, latency = page.split('<div class="tiles">')[0], page.split("<h2>Latency</h2>")[1].split("</section>")[0]
    assert f"Times on this page were {SAID}." in head
    tiles = re.findall(r'<div class="tile[ a-z]*">.*?</div>', page)
    assert not any(" ms<" in tile for tile in tiles) and any("not measured on the device" in tile for tile in tiles)
    assert f"M{SAID[1:]}." in latency and "4.40 ms" in latency
    own = render(make_report(manifest(), [measurement()], bundle_sha256=SHA))
    assert "not the device" not in own and "4.00 ms</b>" in own


def test_the_terminal_says_so_before_any_time() -> None:
    shown = text(built_for(PI))
    assert shown.splitlines()[1] == f"Times below were {SAID}."
    assert "not the device" not in text(manifest())


def test_a_row_among_devices_says_so() -> None:
    (row,) = device_rows([(built_for(PI), [measurement()])])
    assert row.device == "Great CPU 9000, not the device it was built for"
    (row,) = device_rows([(manifest(), [measurement()])])
    assert row.device == "Great CPU 9000"


def test_profile_says_it_in_its_first_line_and_in_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(name for name in ("rpi5-onnxruntime", "x86-64-onnxruntime") if not same(name))
    folder = sample_bundle(tmp_path / "pi", changes={"target": load_target(other)})
    assert main(["profile", str(folder), "--runs", "2"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("THIS MACHINE was measured, not a device: measured on ")
    assert first.endswith(load_target(other).description)
    written = json.loads((tmp_path / "pi.measurement.json").read_text())
    assert f"({platform.machine()})" in written["not_the_device"]
    assert main(["report", str(folder), f"{folder}.measurement.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_the_device"] == written["not_the_device"]


def same(name: str) -> bool:
    return load_target(name).arch == platform.machine()
