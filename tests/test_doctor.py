"""What `edgevit doctor` says of targets that are compiled here: each missing tool with its remedy."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgevit import doctor
from edgevit.backends import tvm
from edgevit.backends.tvm.compile import toolchain
from edgevit.build import host
from edgevit.cli import main
from edgevit.devices.qemu import estimate
from edgevit.errors import RuntimeMissingError
from tests.build.test_host import V3, complete_host

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with everything; every test takes one thing away."""
    complete_host(monkeypatch)
    monkeypatch.setattr(doctor, "installed", lambda package: "1.0")
    monkeypatch.setattr(estimate, "find_mca", lambda: None)
    monkeypatch.setattr(doctor, "cpu_flags", lambda: V3)


def health(name: str) -> tuple[bool, bool, str]:
    found = next(target for target in doctor.diagnose().targets if target.name == name)
    return found.builds, found.runs_as_device, "; ".join(found.remarks)


def test_everything_is_there() -> None:
    assert health("x86-64-v3-tvm") == (True, True, "")
    builds, as_device, remarks = health("cortex-a72-tvm")
    assert builds and not as_device
    assert remarks == "this machine is x86_64, the target aarch64; verified here in /usr/bin/qemu"


def test_a_cpu_without_the_instructions_does_not_run_machine_code() -> None:
    assert health("x86-64-v4-tvm")[:2] == (True, False)
    assert "lacks avx512f" in health("x86-64-v4-tvm")[2] and "do not run here" in health("x86-64-v4-tvm")[2]


def test_no_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "installed", lambda package: None if package.startswith("apache") else "1.0")
    builds, _, remarks = health("x86-64-v3-tvm")
    assert not builds and "apache-tvm is missing: pip install 'edgevit[tvm]'" in remarks
    assert health("x86-64-avx2-onnxruntime")[0]


def test_no_cross_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm, "linker", toolchain.linker)
    monkeypatch.setattr("shutil.which", lambda name: None if name.startswith("aarch64") else name)
    builds, _, remarks = health("cortex-a72-tvm")
    assert not builds and "apt install g++-aarch64-linux-gnu" in remarks
    assert health("x86-64-v3-tvm")[0]


def test_no_llvm_for_it_and_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm, "llvm_architectures", lambda: ("x86_64",))
    builds, _, remarks = health("cortex-a72-tvm")
    assert not builds and "the installed TVM cannot compile for aarch64, only for: x86_64" in remarks

    def broken() -> tuple[str, ...]:
        raise RuntimeMissingError("TVM's compiler cannot be loaded")

    monkeypatch.setattr(tvm, "llvm_architectures", broken)
    assert health("x86-64-v3-tvm") == (False, False, "TVM's compiler cannot be loaded")


def test_no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "emulator_path", lambda: None)
    assert "not verified here: apt install qemu-user-static" in health("cortex-a72-tvm")[2]


def test_what_emulated_devices_lack_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVIT_DEVICES", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert [tool.version for tool in doctor.diagnose().emulation] == [None, None, None]
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "emulated device missing: edgevit device setup qemu" in said
    assert "cycle estimate  missing: sudo apt-get install llvm-19" in said
    assert "heap accountant missing: sudo apt-get install gcc-aarch64-linux-gnu" in said
