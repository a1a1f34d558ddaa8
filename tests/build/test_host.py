"""`--target host`: the fastest target that this machine builds and runs, as the reports ranked them."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from edgevit.backends import tvm
from edgevit.build import host
from edgevit.cli import main
from edgevit.errors import TargetError
from edgevit.schema.target import list_targets, load_target

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
V3 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe")
V2 = ("ssse3", "sse4_1", "sse4_2", "popcnt")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


def complete_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with everything, and a CPU with AVX2."""
    monkeypatch.setattr(host, "installed", lambda package: "1.0")
    monkeypatch.setattr(tvm, "linker", lambda arch: "g++")
    monkeypatch.setattr(tvm, "tools_of", lambda target: None)
    monkeypatch.setattr(tvm, "llvm_architectures", lambda: ("aarch64", "x86_64"))
    monkeypatch.setattr(host, "emulator_path", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(host, "cpu_flags", lambda: V3)


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test takes one thing away."""
    complete_host(monkeypatch)


@pytest.mark.parametrize(
    ("flags", "tvm", "expected"),
    [
        ((*V4, "avx512_vnni", "avx_vnni", "avx512_bf16"), True, "x86-64-avx512vnni-tvm"),
        ((*V3, "avx_vnni"), True, "x86-64-avxvnni-tvm"),
        (V4, True, "x86-64-v4-tvm"),
        (V3, True, "x86-64-v3-tvm"),
        (V2, True, "x86-64-v2-tvm"),
        ((*V4, "avx512_vnni", "avx512_bf16"), False, "x86-64-openvino"),
        ((*V3, "avx_vnni"), False, "x86-64-onnxruntime"),
        (V3, False, "x86-64-avx2-onnxruntime"),
    ],
)
def test_host_is_the_fastest_target_that_builds_and_runs_here(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], tvm: bool, expected: str
) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: flags)
    if not tvm:
        monkeypatch.setattr(host, "installed", lambda package: None if package.startswith("apache") else "1.0")
    target, why = host.host_target()
    assert target == load_target(expected)
    assert why.startswith(f"{expected}: the fastest")
    assert ("apache-tvm is missing: pip install" in why) == (not tvm)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("apache", "onnxruntime", "openvino"), "x86-64-avx512vnni-tvm"),
        (("onnxruntime", "openvino"), "x86-64-onnxruntime"),
        (("openvino",), "x86-64-openvino"),
    ],
)
def test_a_runtime_that_saves_no_time_where_tokens_follow_the_image_comes_last(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: (*V4, "avx512_vnni", "avx_vnni", "avx512_bf16"))
    monkeypatch.setattr(host, "installed", lambda package: "1.0" if package.startswith(there) else None)
    target, why = host.host_target(follows=True)
    assert target.name == expected
    assert why.startswith(f"{expected}: the fastest that this machine can build and run where the number of tokens")


def test_host_on_arm_goes_by_what_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(host, "cpu_flags", lambda: ("fp", "asimd", "crc32"))
    assert host.host_target()[0].name == "cortex-a72-tvm"
    dots = ("asimd", "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "asimddp")
    monkeypatch.setattr(host, "cpu_flags", lambda: dots)
    assert host.host_target()[0].name == "cortex-a76-tvm"


@pytest.mark.parametrize(("arch", "flags"), [("riscv64", ()), ("x86_64", ("sse2", "ssse3"))])
def test_an_unknown_host_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, arch: str, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: arch)
    monkeypatch.setattr(host, "cpu_flags", lambda: flags)
    missing = (
        "none for the architecture riscv64" if arch == "riscv64" else "x86-64-v2-tvm \\(this CPU lacks sse4_1, sse4_2"
    )
    with pytest.raises(TargetError, match=missing):
        host.host_target()


def test_every_target_for_a_cpu_at_hand_is_ranked() -> None:
    left = {name for name in list_targets() if load_target(name).backend != "openvino"} - set(host.fastest())
    assert not left, "--target host never takes these"


def test_the_ranking_is_what_was_measured() -> None:
    """With VNNI by the means over both models; what needs none of it stands behind, as measured with AVX2."""
    root = Path(__file__).parents[2] / "reports/reference"
    rows = json.loads((root / "peers-vnni.json").read_text(encoding="utf-8"))["rows"]
    ranked = [name for name in host.fastest() if name.startswith("x86")]
    measured = {
        name: sum(row["to_float"]["value"] for row in rows if row["name"] == f"edgevit {name}") for name in ranked
    }
    ahead = ranked[: ranked.index("x86-64-v4-tvm") + 1]
    # Of CPUs that come as far as this one none was measured.
    compared = [name for name in ahead if name != "x86-64-avxvnni-tvm"]
    assert compared == sorted(compared, key=measured.__getitem__)
    rows = json.loads((root / "backends.json").read_text(encoding="utf-8"))["rows"]
    *behind, last = ranked[len(ahead) :]
    assert last == "x86-64-v2-tvm"  # whatever has AVX2 has wider instructions for the same
    for model in ("deit_tiny", "vit_tiny"):
        times = {r["target"]: r["paths"][0]["cpu_median_ms"] for r in rows if r["model"] == model and r["int8"]}
        assert behind == sorted(behind, key=times.__getitem__)


def test_the_host_is_explained_and_exported_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["targets", "host"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("x86-64-v3-tvm: ") and "x86-64-v3-tvm: the fastest that this machine" in told.err
    assert main(["targets", "--export", "host"]) == 0
    assert load_target(tmp_path / "x86-64-v3-tvm.toml") == load_target("x86-64-v3-tvm")


def test_build_takes_the_host_and_says_which_target_that_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--target", "host", "--dry-run"]) == 0
    assert "for x86-64-v3-tvm, predicted" in capsys.readouterr().out
