"""LiteRT's and ONNX Runtime's own builds beside edgevit's on ARM: what is counted, what is kept, what is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import arm_peers, tvm_counts
from benchmarks.arm import BOARDS
from benchmarks.arm_peers import (
    LITERT_PEERS,
    NAME,
    ONNX_PEERS,
    OWN,
    OWN_ONNX,
    OWN_TVM,
    RIVAL,
    Row,
    fetch_litert,
    read,
    render,
    tvm_rows,
)
from edgevit.util.resources import shipped
from edgevit.util.strict_json import dumps

REFERENCE = shipped("targets").parent / "reports/reference"


def made(name: str = OWN, by: str = "onnxruntime", cpu: str = "cortex-a76", millions: float = 200) -> Row:
    return Row(
        cpu=cpu,
        name=name,
        by=by,
        own=name.startswith("edgevit"),
        int8=True,
        instructions=int(1e6 * millions),
        products=None if by == "tvm" else int(60e6),
        versions="runtime 1, qemu 7",
    )


def test_what_is_recorded_is_what_is_shown_and_of_every_build() -> None:
    rows = read(REFERENCE / f"{NAME}.json")
    assert render(rows) == (REFERENCE / f"{NAME}.md").read_text(encoding="utf-8")
    names = [*ONNX_PEERS, *LITERT_PEERS, *OWN_ONNX, *OWN_TVM]
    assert [(row.cpu, row.name) for row in rows] == [(cpu, name) for cpu in BOARDS for name in names]


@pytest.mark.parametrize("cpu", BOARDS)
def test_tvms_figures_are_those_of_its_own_report(cpu: str) -> None:
    """After new counts: python -m benchmarks.arm_peers --only tvm."""
    told = [row for row in read(REFERENCE / f"{NAME}.json") if row.cpu == cpu and row.by == "tvm"]
    assert told == tvm_rows(REFERENCE / "tvm-counts.json", cpu)


@pytest.mark.parametrize("cpu", ["cortex-a76", "armv8.6-i8mm"])
def test_no_int8_build_of_edgevit_executes_more_than_literts(cpu: str) -> None:
    rows = {row.name: row for row in read(REFERENCE / f"{NAME}.json") if row.cpu == cpu}
    own = [row for row in rows.values() if row.own and row.int8]
    assert len(own) == 2
    assert all(row.instructions <= rows[RIVAL].instructions for row in own)


def test_a_table_tells_builds_by_processor() -> None:
    text = render(
        [made(RIVAL, "litert", millions=220), made(), made("edgevit, TVM int8, kernels", "tvm", millions=106)]
    )
    assert "| LiteRT dynamic | 220.0 | 60.0 |" in text
    assert "| **edgevit, TVM int8, kernels** | 106.0 | - |" in text
    assert f"{OWN} over {RIVAL}, asked at most 1: cortex-a76 0.91." in text


def test_edgevits_own_models_and_the_peers_are_given_what_each_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm_peers, "ONNX_PEERS", {})
    monkeypatch.setattr(arm_peers, "DEPTH", 1)
    found = arm_peers.onnx_models(tmp_path)
    assert {name: (own, int8) for name, (_, own, int8) in found.items()} == {
        name: (True, int8) for name, int8 in OWN_ONNX.items()
    }
    operators = [{node.op_type for node in model.graph.node} for (model, _), _, _ in found.values()]
    assert "MatMulIntegerToFloat" in operators[1] and "MatMulIntegerToFloat" not in operators[0]
    assert all(dict(fed)["image"].shape == (1, 224, 224, 3) for (_, fed), _, _ in found.values())
    assert arm_peers.image().shape == (1, 3, 224, 224) and arm_peers.image().dtype == np.float32


def test_what_is_not_counted_anew_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SimpleNamespace(python="python3.11", packages={"onnxruntime": "1"}, emulator_version="qemu 7")
    new: float
    monkeypatch.setattr("edgevit.devices.qemu.userland.installed", lambda: place)
    monkeypatch.setattr(arm_peers, "fetch_litert", lambda _python, folder: folder)
    monkeypatch.setattr(arm_peers, "tvm_rows", lambda _path, cpu: [made("edgevit, TVM int8, kernels", "tvm", cpu, 106)])
    monkeypatch.setattr(arm_peers, "count_litert", lambda _p, _m, cpu, _w: [made(RIVAL, "litert", cpu, new)])
    monkeypatch.setattr(arm_peers, "count_onnx", lambda _p, _m, cpu: [made(cpu=cpu, millions=new)])
    words = ["--models", str(tmp_path), "-o", str(tmp_path)]

    def counts() -> dict[tuple[str, str], float]:
        return {(row.cpu, row.by): row.instructions / 1e6 for row in read(tmp_path / f"{NAME}.json")}

    new = 300.0
    assert CliRunner().invoke(arm_peers.main, words).exit_code == 0
    before = counts()
    assert before == {(cpu, by): n for cpu in BOARDS for by, n in (("onnxruntime", 300), ("litert", 300), ("tvm", 106))}
    new = 200.0
    assert CliRunner().invoke(arm_peers.main, [*words, "--only", "litert", "--cpu", "cortex-a76"]).exit_code == 0
    assert counts() == {**before, ("cortex-a76", "litert"): 200}
    assert list(counts()) == list(before)


def test_a_table_of_another_version_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.json").write_text(json.dumps([{"cpu": "cortex-a76"}]))
    with pytest.raises(click.ClickException, match="another version"):
        read(tmp_path / f"{NAME}.json")


def test_a_wheel_that_pip_does_not_get_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no such wheel' >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(click.ClickException, match="LiteRT's aarch64 wheel .no such wheel"):
        fetch_litert("python3.11", tmp_path)


def test_kernels_are_those_of_the_type_and_the_processor(tmp_path: Path) -> None:
    kernel = tvm_counts.KernelCount(name="qkv", calls=1, instructions=7, lower_cycles=1.0, waiting_cycles=2.0)
    rows = [
        tvm_counts.Row(
            target="cortex-a76-tvm",
            weight_bits=bits,
            taken=True,
            cpu="cortex-a76",
            core="c",
            weights_bytes=1,
            kernels=(kernel,) * count,
        )
        for bits, count in ((8, 1), (None, 3))
    ]
    (tmp_path / "tvm-counts.json").write_text(dumps(rows))
    found = tvm_rows(tmp_path / "tvm-counts.json", "cortex-a76")
    assert [(row.int8, row.instructions) for row in found] == [(False, 21), (True, 7)]
    assert tvm_rows(tmp_path / "tvm-counts.json", "cortex-a72") == []
