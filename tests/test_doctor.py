"""What `edgevit doctor` says of targets that are compiled here: each missing tool with its remedy."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from edgevit import doctor
from edgevit.backends.tvm.compile import toolchain
from edgevit.cli import main
from edgevit.devices.qemu import estimate
from edgevit.errors import RuntimeMissingError, TargetError
from edgevit.schema.target import list_targets, load_target

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with everything; every test takes one thing away."""
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
    monkeypatch.setattr(doctor, "linker", lambda arch: "g++")
    monkeypatch.setattr(doctor, "llvm_architectures", lambda: ("aarch64", "x86_64"))
    monkeypatch.setattr(doctor, "emulator_path", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(estimate, "find_mca", lambda: None)
    monkeypatch.setattr(doctor, "cpu_flags", lambda: ("avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"))


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
    monkeypatch.setattr(doctor, "_version", lambda package: None if package.startswith("apache") else "1.0")
    builds, _, remarks = health("x86-64-v3-tvm")
    assert not builds and "apache-tvm is missing: pip install 'edgevit[tvm]'" in remarks
    assert health("x86-64-avx2-onnxruntime")[0]


def test_no_cross_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "linker", toolchain.linker)
    monkeypatch.setattr("shutil.which", lambda name: None if name.startswith("aarch64") else name)
    builds, _, remarks = health("cortex-a72-tvm")
    assert not builds and "apt install g++-aarch64-linux-gnu" in remarks
    assert health("x86-64-v3-tvm")[0]


def test_no_llvm_for_it_and_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "llvm_architectures", lambda: ("x86_64",))
    builds, _, remarks = health("cortex-a72-tvm")
    assert not builds and "the installed TVM cannot compile for aarch64, only for: x86_64" in remarks

    def broken() -> tuple[str, ...]:
        raise RuntimeMissingError("TVM's compiler cannot be loaded")

    monkeypatch.setattr(doctor, "llvm_architectures", broken)
    assert health("x86-64-v3-tvm") == (False, False, "TVM's compiler cannot be loaded")


def test_no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "emulator_path", lambda: None)
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


V3 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@pytest.mark.parametrize(
    ("flags", "tvm", "expected"),
    [
        ((*V4, "avx512_vnni", "avx_vnni", "avx512_bf16"), True, "x86-64-avx512vnni-tvm"),
        ((*V3, "avx_vnni"), True, "x86-64-avxvnni-tvm"),
        (V4, True, "x86-64-v4-tvm"),
        (V3, True, "x86-64-v3-tvm"),
        ((*V4, "avx512_vnni", "avx512_bf16"), False, "x86-64-openvino"),
        ((*V3, "avx_vnni"), False, "x86-64-onnxruntime"),
        (V3, False, "x86-64-avx2-onnxruntime"),
    ],
)
def test_host_is_the_fastest_target_that_builds_and_runs_here(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], tvm: bool, expected: str
) -> None:
    monkeypatch.setattr(doctor, "cpu_flags", lambda: flags)
    if not tvm:
        monkeypatch.setattr(doctor, "_version", lambda package: None if package.startswith("apache") else "1.0")
    target, why = doctor.host_target()
    assert target == load_target(expected)
    assert why.startswith(f"{expected}: the fastest")
    assert ("apache-tvm is missing: pip install" in why) == (not tvm)


def test_host_on_arm_goes_by_what_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(doctor, "cpu_flags", lambda: ("fp", "asimd", "crc32"))
    assert doctor.host_target()[0].name == "cortex-a72-tvm"
    dots = ("asimd", "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "asimddp")
    monkeypatch.setattr(doctor, "cpu_flags", lambda: dots)
    assert doctor.host_target()[0].name == "cortex-a76-tvm"


@pytest.mark.parametrize(("arch", "flags"), [("riscv64", ()), ("x86_64", ("sse2", "ssse3"))])
def test_an_unknown_host_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, arch: str, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: arch)
    monkeypatch.setattr(doctor, "cpu_flags", lambda: flags)
    missing = "none for the architecture riscv64" if arch == "riscv64" else "x86-64-v3-tvm \\(this CPU lacks avx2, fma"
    with pytest.raises(TargetError, match=missing):
        doctor.host_target()


def test_every_target_for_a_cpu_at_hand_is_ranked() -> None:
    left = {name for name in list_targets() if load_target(name).backend != "openvino"} - set(doctor.FASTEST)
    assert not left, "--target host never takes these"


def test_the_ranking_is_what_was_measured() -> None:
    """With VNNI by the means over both models; what needs none of it stands behind, as measured with AVX2."""
    root = Path(__file__).parents[1] / "reports/reference"
    rows = json.loads((root / "peers-vnni.json").read_text(encoding="utf-8"))["rows"]
    ranked = [name for name in doctor.FASTEST if name.startswith("x86")]
    measured = {
        name: sum(row["to_float"]["value"] for row in rows if row["name"] == f"edgevit {name}") for name in ranked
    }
    ahead = ranked[: ranked.index("x86-64-v4-tvm") + 1]
    assert ahead == sorted(ahead, key=measured.__getitem__)
    rows = json.loads((root / "backends.json").read_text(encoding="utf-8"))["rows"]
    behind = ranked[len(ahead) :]
    for model in ("deit_tiny", "vit_tiny"):
        times = {r["target"]: r["paths"][0]["cpu_median_ms"] for r in rows if r["model"] == model and r["int8"]}
        assert behind == sorted(behind, key=times.__getitem__)


def test_build_takes_the_host_and_says_which_target_that_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--target", "host", "--dry-run"]) == 0
    assert "for x86-64-v3-tvm, predicted" in capsys.readouterr().out
