"""The C++ runner: the same numbers as the Python one, here and for aarch64 under an emulator; what it refuses."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.errors import OutputError, RuntimeMissingError
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from edgevit.backends.reference import reference_with_margins  # noqa: E402
from edgevit.backends.tvm import memory_bound as tvm_bound  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa, tuned  # noqa: E402
from edgevit.backends.tvm.compile import native  # noqa: E402
from edgevit.backends.tvm.run import runner  # noqa: E402
from edgevit.onnx_form.assemble import assemble  # noqa: E402
from edgevit.program.program import Program  # noqa: E402
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names  # noqa: E402
from edgevit.verify.parity import ALL_OPEN, ALL_SKIPPED  # noqa: E402
from tests.backends.tvm.native_runner import (  # noqa: E402
    Native,
    copied,
    emulated,
    here,
    outputs,
    read,
    resign,
    written,
)

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64, with aarch64 emulated")
AVX2, NEON = isa("avx2"), isa("neon")
EFFORTS = (ALL_OPEN, ALL_SKIPPED, 0.0)
PROGRAM = tiny_program(gated=True, skip=True)
# Widths that are no whole vectors, gates on the mean, a second prefix token.
ODD = tiny_program(seed=1, gated=True, skip=True, gate_pool="mean", prefix=2, dim=36, heads=3, hidden=50)


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return here(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return emulated(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(PROGRAM, AVX2, tmp_path_factory.mktemp("model"))


def assert_reference(native: Native, program: Program, folder: Path) -> None:
    """All open, all skipped and the image's own path agree with the reference, within what sums in float32 differ."""
    reference = reference_with_margins(assemble(program))
    image = tiny_images(program.spec, 1)
    for effort in EFFORTS:
        expected, gates, margins, _ = reference(image, effort)
        assert effort or np.abs(margins).min() > 1e-3 and 0 < gates.sum() < gates.size
        got = outputs(native.run(folder, folder / "image.raw", effort=effort))
        np.testing.assert_allclose(got[0], expected, atol=2e-5)
        np.testing.assert_array_equal(got[1], gates)


@pytest.mark.parametrize("program", [PROGRAM, ODD], ids=["even", "odd"])
def test_it_is_the_python_runner_and_the_reference(x86: Native, program: Program, tmp_path: Path) -> None:
    written(program, AVX2, tmp_path)
    python, image = runner.load(tmp_path), tiny_images(program.spec, 1)
    for effort in EFFORTS:
        logits, gates = outputs(x86.run(tmp_path, tmp_path / "image.raw", effort=effort))
        for a, b in zip((logits, gates), python.run(image, effort), strict=True):
            np.testing.assert_array_equal(a, b)
    assert_reference(x86, program, tmp_path)


@pytest.mark.parametrize(
    ("program", "cpu"),
    [(PROGRAM, "cortex-a53"), (PROGRAM, "cortex-a72"), (PROGRAM, "cortex-a76"), (ODD, "cortex-a72")],
    ids=["a53", "a72", "a76", "a72, odd"],
)
def test_aarch64_is_the_reference(arm: Native, program: Program, cpu: str, tmp_path: Path) -> None:
    written(program, tuned(NEON, cpu), tmp_path)
    printed = arm.on(cpu).run(tmp_path, tmp_path / "image.raw")
    assert printed["emulated"] and "cpu_ms" not in printed  # an emulator's time is no latency
    assert_reference(arm.on(cpu), program, tmp_path)


def test_a_cpu_without_the_instructions_is_refused_before_they_run(arm: Native, tmp_path: Path) -> None:
    written(PROGRAM, tuned(NEON, "cortex-a76"), tmp_path)
    done = arm.on("cortex-a72").start(tmp_path, tmp_path / "image.raw")
    assert done.returncode == 19 and "atomics fphp asimdhp asimdrdm lrcpc asimddp" in done.stderr


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_box_without_avx_runs_what_is_made_for_it(x86: Native, int8: bool, tmp_path: Path) -> None:
    """Runner, runtime libraries and kernels, on the oldest CPU that has the instructions."""
    entries = (LinearPlan(name=name, int8=True, scale=0.05, zero_point=128) for name in linear_names(PROGRAM.spec))
    plan = QuantPlan(linears=tuple(entries), weight_bits=7, attentions=attention_names(PROGRAM.spec))
    written(PROGRAM, isa("sse42"), tmp_path, plan if int8 else None)
    boxed = Native(path=x86.path, before=(old_x86(), "-cpu", "Nehalem"))
    (logits, gates), image = outputs(boxed.run(tmp_path, tmp_path / "image.raw")), tiny_images(PROGRAM.spec, 1)
    for a, b in zip((logits, gates), runner.load(tmp_path).run(image), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "cpu", "lacking"),
    [("sse42", "Conroe", "sse4_1 sse4_2 popcnt"), ("avx2", "Nehalem", "avx2 fma bmi1 bmi2 f16c abm movbe")],
)
def test_an_older_box_is_told_what_it_lacks(x86: Native, name: str, cpu: str, lacking: str, tmp_path: Path) -> None:
    written(PROGRAM, isa(name), tmp_path)
    done = Native(path=x86.path, before=(old_x86(), "-cpu", cpu)).start(tmp_path, tmp_path / "image.raw")
    assert done.returncode == 19 and done.stderr.count("\n") == 1
    assert f"needs a CPU with {lacking}; build for a target that this CPU can run" in done.stderr


def old_x86() -> str:
    found = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if found is None:
        unavailable("qemu is not installed; on Debian: apt install qemu-user-static")
    return found


def test_what_one_line_says(x86: Native, folder: Path) -> None:
    printed = x86.run(folder, folder / "image.raw", runs=5, top=3)
    scores = [row["score"] for row in printed["top"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and printed["milliseconds"] > 0
    assert printed["runs"] == 5 and 0 < printed["cpu_ms"]["min"] <= printed["cpu_ms"]["median"]
    assert 0 < printed["started_bytes"] < printed["load_peak_bytes"] <= printed["peak_bytes"]
    assert printed["load_ms"] > 0
    # Whose memory it is once loaded: of the weights one page with those that the system reads around it.
    held = printed["loaded"]
    assert held["weights"] <= 1 << 21 and all(held[kind] > 0 for kind in ("model", "runtime", "system", "own"))
    assert held["runtime"] < 4e5 and held["model"] <= (folder / "model.so").stat().st_size + 8192
    assert sum(held.values()) == pytest.approx(printed["load_peak_bytes"], rel=0.05)


def test_a_plan_is_many_runs_of_one_process(x86: Native, folder: Path, tmp_path: Path) -> None:
    images = tiny_images(PROGRAM.spec, 2)
    (tmp_path / "images").write_bytes(images.tobytes())
    (tmp_path / "plan").write_text(f"0 {ALL_OPEN!r}\n1 0.0\n0 {ALL_SKIPPED!r}\n")
    done = x86.start(folder, tmp_path / "images", "--plan", tmp_path / "plan", "--top", 1000, "--trace", "--cpus", 0)
    loading, *runs = map(json.loads, done.stdout.splitlines())
    assert 0 < loading["started_bytes"] <= loading["loaded_bytes"] and loading["load_ms"] > 0
    python = runner.load(folder)
    for told, (index, effort) in zip(runs, ((0, ALL_OPEN), (1, 0.0), (0, ALL_SKIPPED)), strict=True):
        for a, b in zip(outputs(told), python.run(images[index : index + 1], effort), strict=True):
            np.testing.assert_array_equal(a, b)
        assert told["cpu_ms"]["median"] > 0 and told["wall_ms"]["median"] > 0
        # Pages that only starting needed were let go: less may be held than then.
        assert 0 < told["resident_bytes"] <= told["peak_bytes"] and loading["started_bytes"] <= told["peak_bytes"]
    # What the process has grown by is told after every kernel of its first run; the system counts to a few pages.
    grown = np.array([call[4] for call in runs[0]["calls"] if not call[1].startswith("vm.")])
    assert len(grown) > 10 and grown[-1] > 0 and (np.diff(grown) >= -16384).all()
    assert {len(call) for told in runs[1:] for call in told["calls"]} == {4}


def test_a_plan_needs_whole_images_and_takes_infinite_efforts(x86: Native, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("0 inf\n0 infinity\n0 -inf\n0 -infinity\n0 -1e30")
    done = x86.start(folder, folder / "image.raw", "--plan", tmp_path / "plan")
    assert [set(json.loads(line)["gates"]) for line in done.stdout.splitlines()[1:]] == [{1}, {1}, {0}, {0}, {0}]
    (tmp_path / "images").write_bytes((folder / "image.raw").read_bytes() + b"1")
    done = x86.start(folder, tmp_path / "images", "--plan", tmp_path / "plan")
    assert done.returncode == 15 and "has 3073 bytes, which are no whole images of 3072" in done.stderr


def test_a_ppm_file_is_the_same_image(x86: Native, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.ppm"
    path.write_bytes(b"P6\n# made by hand\n32 32\n255\n" + (folder / "image.raw").read_bytes())
    results = [x86.run(folder, image)["top"] for image in (path, folder / "image.raw")]
    assert results[0] == results[1]


def test_help_is_given_and_a_full_disk_is_told(x86: Native, folder: Path) -> None:
    for arguments in (("--help",), ("-h",), (folder, "--help")):
        done = x86.start(*arguments)
        assert done.returncode == 0 and not done.stderr and done.stdout.startswith("usage: runner FOLDER")
        assert "Exit codes: 0 done" in done.stdout and "--cpus LIST" in done.stdout
    with Path("/dev/full").open("wb") as full:
        for command in ((x86.path, folder, folder / "image.raw"), (x86.path, "--help")):
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 16 and "cannot write the answer: No space left" in done.stderr


def test_a_name_makes_no_emulator(x86: Native, folder: Path, tmp_path: Path) -> None:
    """Neither the folder's nor the program's; times are told."""
    place = tmp_path / "qemu"
    shutil.copytree(x86.path.parent, place)
    (place / "runner").rename(place / "qemu-aarch64")
    copied(folder, place)
    printed = replace(x86, path=place / "qemu-aarch64").run(place, place / "image.raw")
    assert not printed["emulated"] and printed["cpu_ms"]["min"] > 0


def test_an_emulator_is_known_whatever_its_name(arm: Native, tmp_path: Path) -> None:
    written(PROGRAM, tuned(NEON, "cortex-a53"), tmp_path)
    shutil.copy(Path(arm.before[0]).resolve(), tmp_path / "player")
    played = replace(arm, before=(str(tmp_path / "player"), *arm.before[1:]))
    printed = played.run(tmp_path, tmp_path / "image.raw")
    assert printed["emulated"] and "cpu_ms" not in printed


def test_threads_are_at_most_one_per_cpu(x86: Native, tmp_path: Path) -> None:
    written(PROGRAM, replace(AVX2, threads=4), tmp_path)
    cpu = min(os.sched_getaffinity(0))
    printed = read(x86.start(tmp_path, tmp_path / "image.raw", "--json", "--cpus", cpu))
    assert printed["threads"] == 1
    done = x86.start(tmp_path, tmp_path / "image.raw", "--cpus", cpu, "--threads", 2)
    assert done.returncode == 2 and "this process may use 1 CPU, got --threads 2; give fewer" in done.stderr
    done = x86.start(tmp_path, tmp_path / "image.raw", "--threads", 300)
    assert done.returncode == 2 and "shared out among 4, got --threads 300" in done.stderr


def test_a_library_for_another_architecture_is_refused(x86: Native, folder: Path, tmp_path: Path) -> None:
    text = (copied(folder, tmp_path) / "model.json").read_text().replace("x86_64", "aarch64")
    (tmp_path / "model.json").write_text(text)
    resign(tmp_path)
    done = x86.start(tmp_path, tmp_path / "image.raw")
    assert done.returncode == 19 and "is for aarch64 or AMD64, this runner is for x86_64" in done.stderr


def test_no_compiler_and_no_folder_are_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="No such file"):
        native.build_runner("x86_64", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match=r"apt install g\+\+-aarch64-linux-gnu"):
        native.build_runner("aarch64", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot compile runner.cc"):
        native.build_runner("x86_64", tmp_path, options=("-Dedgevit_library=",))
    assert not (tmp_path / "runner").exists()


def test_its_shipped_sources_compile_by_the_command_they_name(folder: Path, tmp_path: Path) -> None:
    """No header is missing, and nobody needs edgevit to change the program."""
    for path in native.SOURCES:
        shutil.copy(path, tmp_path)
    told = (tmp_path / "runner.cc").read_text(encoding="utf-8").split("To compile: ")[1].split("\n")[0]
    subprocess.run([*shlex.split(told), "-O0"], cwd=tmp_path, check=True)
    assert read(Native(path=tmp_path / "runner").start(folder, folder / "image.raw", "--json"))["runs"] == 1


def test_it_needs_the_c_library_alone(x86: Native) -> None:
    """And the compiler's own small one, which every system has that runs programs of C++."""
    told = subprocess.run(["readelf", "-d", x86.path], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", told)) <= {
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "ld-linux-x86-64.so.2",
    }
    assert x86.path.stat().st_size < 4e5 and [path.name for path in x86.path.parent.iterdir()] == ["runner"]


def test_memory_of_a_real_gated_model(data: Path, x86: Native, tmp_path: Path) -> None:
    """Loading reads one page of the weights; a run reads each once, from pages of the file."""
    from edgevit.frontends.resolve import resolve
    from edgevit.program.spec import GateSpec

    name = "deit_tiny_patch16_224.fb_in1k"
    program = resolve(name, weights=data / f"{name}.safetensors")
    gate = GateSpec(pool="prefix", threshold=0.0)
    spec = replace(program.spec, branches=tuple(replace(b, gate=gate) for b in program.spec.branches))
    rng = np.random.default_rng(0)
    added: dict[str, Any] = {}
    for branch in spec.branches:
        added[f"{branch.name}.gate.weight"] = rng.standard_normal(spec.dim, dtype=np.float32)
        added[f"{branch.name}.gate.bias"] = np.zeros(1, dtype=np.float32)
    written(Program(spec=spec, weights={**program.weights, **added}), AVX2, tmp_path)
    weights = (tmp_path / "model.weights").stat().st_size
    arena = 4 * runner.read_manifest(tmp_path / "model.json").arena
    closed, opened = (x86.run(tmp_path, tmp_path / "image.raw", effort=e) for e in (ALL_SKIPPED, ALL_OPEN))
    around = 1 << 21  # what the system reads around a page at most
    assert opened["loaded"]["weights"] <= around
    assert opened["load_peak_bytes"] < 3e6 + around
    assert opened["peak_bytes"] < weights + arena + 4e6
    assert closed["peak_bytes"] < opened["peak_bytes"] / 2
    # What a run touched beyond the image, which is put there before it; the bound holds, and says little too much.
    touched = opened["grown_bytes"] + 224 * 224 * 3
    proven = tvm_bound.bound(arena=arena, io=224 * 224 * 3 + 4 + 4 * 1000 + 24, weights=weights).bound.arena_bytes
    assert touched <= proven <= 1.10 * touched
