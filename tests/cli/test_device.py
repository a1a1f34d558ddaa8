"""`edgevit device` without anything set up: what it says, and that nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevit.cli import main
from edgevit.devices.qemu import userland
from edgevit.schema.arm_cpus import ARM_CPUS


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVIT_DEVICES", str(tmp_path / "devices"))
    return tmp_path / "devices"


def test_nothing_is_set_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["device", "list"]) == 0
    said = capsys.readouterr().out
    assert "is not set up; run: edgevit device setup qemu" in said
    assert all(f"qemu:{name}" in said for name in ARM_CPUS)
    assert main(["device", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"] is None and [cpu["name"] for cpu in told["cpus"]] == list(ARM_CPUS)
    assert main(["device", "remove", "qemu"]) == 0
    assert capsys.readouterr().out == "nothing was set up\n"
    bundle = tmp_path / "bundle"
    assert main(["profile", str(bundle), "--device", "qemu:cortex-a76"]) == 21
    assert "edgevit device setup qemu" in capsys.readouterr().err


def test_what_is_asked_for_is_set_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.devices.qemu.test_emulator import fake

    asked: list[object] = []

    def setup(runtimes: object, cpus: object, say: object) -> object:
        asked.extend((runtimes, cpus))
        folder = userland.devices_folder()
        folder.mkdir(parents=True)
        return fake(folder, "true")

    monkeypatch.setattr(userland, "setup", setup)
    assert main(["device", "setup", "qemu", "--cpu", "cortex-a53", "--runtime", "openvino"]) == 0
    assert asked == [("openvino",), ("cortex-a53",)]
    told = capsys.readouterr()
    assert "profile BUNDLE --device qemu:cortex-a53" in told.out
    assert "no instructions will be counted: there is no C compiler" in told.err
    assert main(["device", "setup", "virtualbox"]) == 2
    assert main(["device", "setup", "qemu", "--cpu", "max"]) == 2
    assert main(["device", "setup", "qemu", "--runtime", "tvm"]) == 2


def test_help_lists_processors_and_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "setup", "--help"]) == 0
    told = capsys.readouterr().out
    assert "cortex-a76" in told and "onnxruntime" in told
    assert main(["device", "setup", "qemu", "--cpu", "i486"]) == 2
    assert "'i486' is not one of 'cortex-a53'" in capsys.readouterr().err
