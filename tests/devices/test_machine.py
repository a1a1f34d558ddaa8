"""Finding machines, and a transport that is added by its folder and a line of the table alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit import pipeline
from edgevit.cli import main
from edgevit.devices import machine
from edgevit.devices.local import LocalMachine
from edgevit.devices.machine import find
from edgevit.devices.qemu.emulate import QemuMachine
from edgevit.devices.ssh.board import Board
from edgevit.errors import DeviceError, RuntimeMissingError
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.schema.target import load_target
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.building import RECIPE, image_set
from tests.bundles import sample_bundle
from tests.tiny import tiny_program


def test_machines_are_found_by_their_address() -> None:
    assert isinstance(find(None), LocalMachine)
    board, processor = find("ssh://pi@board:2222", python="venv/bin/python"), find("qemu:cortex-a76")
    assert isinstance(board, Board) and (board.name, board.python) == ("pi@board", "venv/bin/python")
    assert isinstance(processor, QemuMachine) and processor.cpu.name == "cortex-a76"
    assert [each.emulated for each in (find(None), board, processor)] == [False, False, True]


@pytest.mark.parametrize("device", ["", "board", "adb://board", "local", "ssh:board", "ssh://"])
def test_another_address_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="give for example ssh://pi@raspberrypi.local:22"):
        find(device)


def profiled(bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """Profile with the command, on a machine of a transport that only the tests have."""
    monkeypatch.setitem(machine.TRANSPORTS, "loop", "tests.devices.loop")
    out = folder / "out.json"
    asked = ["--device", "loop:here", "--runs", "8", "--cpus", "0", "-o", str(out)]
    assert main(["profile", str(bundle), *asked]) == 0
    page = folder / "page.html"
    assert main(["report", str(bundle), str(out), str(out), "--html", str(page)]) == 0
    assert "reached over" in page.read_text() and "loop" in page.read_text()
    return read_measurement(out)


def test_a_transport_of_its_own_runs_the_python_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = profiled(sample_bundle(tmp_path / "tiny"), tmp_path, monkeypatch)
    assert measured.device == "loop" and measured.environment.cpus == (0,)
    assert all(case.held for case in measured.golden) and len(measured.golden) == 3
    assert [path.branches_open for path in measured.paths][:2] == [4, 0]
    assert measured.process is not None and measured.memory is not None


def test_a_transport_of_its_own_runs_the_native_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip()
    program = tiny_program(gated=True, skip=True, depth=2)
    try:
        built = pipeline.build(
            program, load_target("x86-64-v3-tvm"), image_set(program), tmp_path / "tiny", recipe=RECIPE
        )
    except RuntimeMissingError as error:
        unavailable(str(error))
    measured = profiled(built.folder, tmp_path, monkeypatch)
    assert measured.device == "loop" and measured.environment.python == "none: the C++ runner"
    assert all(case.held for case in measured.golden) and len(measured.golden) == 3
    assert all(path.wall.runs == 8 for path in measured.paths) and measured.process is not None
    assert all((b.open_time_ms or 0) > (b.skipped_time_ms or 0) > 0 for b in measured.branches)
