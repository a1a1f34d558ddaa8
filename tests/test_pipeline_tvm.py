"""The main job with TVM: a library, its weights and a program that runs them, or one clear error."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit import pipeline
from edgevit.build import case, verify_build
from edgevit.build.prediction import predict
from edgevit.bundle.read import open_bundle
from edgevit.devices import local
from edgevit.devices.profile import profile
from edgevit.errors import BoundError, CoverageError, DeviceError, ParityError, RuntimeMissingError, SkipError
from edgevit.schema.budget import check_budgets
from edgevit.schema.claims import Claim
from edgevit.schema.target import Target, load_target
from edgevit.util import machines
from tests.absent import unavailable
from tests.backends import examples
from tests.backends.tvm.available import import_or_skip
from tests.building import RECIPE, image_set, lenient
from tests.bundles import rehash
from tests.tiny import tiny_program

import_or_skip()

from edgevit.backends import tvm as backend  # noqa: E402
from edgevit.backends.tvm.codegen import code as codegen  # noqa: E402
from edgevit.backends.tvm.compile import emit, library, native, toolchain  # noqa: E402
from edgevit.backends.tvm.inspect import counts  # noqa: E402
from edgevit.backends.tvm.kernels import merge as merge_kernel  # noqa: E402
from edgevit.backends.tvm.parts import attention, patch_stem  # noqa: E402
from edgevit.backends.tvm.parts.stage import Shared  # noqa: E402
from edgevit.backends.tvm.run import canary  # noqa: E402
from tests.backends.tvm.native_runner import resign  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64, with aarch64 emulated")
HERE, BOARD, DOT_BOARD = "x86-64-v3-tvm", "cortex-a72-tvm", "cortex-a76-tvm"
FLOAT: dict[str, Any] = {"int8": False, "attention": "float32"}
PROGRAM = tiny_program(gated=True, skip=True, depth=2)
FLASH_MB = 0.5
FILES = {"model.so", "model.weights", "model.json"}
NATIVE = {"runner/native/runner"}
LIB = {f"lib/{name}" for name in ("libtiny.a", "libtiny.so", "tiny.h", "tiny.c", "tiny_weights.S")}
CODE = (path.name for path in (Path(backend.__file__).parent / "cxx").iterdir() if path.suffix in (".cc", ".h"))
SOURCES = {f"runner/source/{name}" for name in (*CODE, "plugin.h")}
LICENCES = {f"licences/apache-tvm/{name}" for name in ("LICENSE", "NOTICE", "LICENSE.builtin_fp16.txt")}


def build(folder: Path, target: str = HERE, **changes: Any) -> pipeline.Built:
    wanted = replace(lenient(target), flash_mb=FLASH_MB, **changes)
    return pipeline.build(PROGRAM, wanted, image_set(PROGRAM), folder, recipe=RECIPE)


def board(folder: Path, target: str = BOARD, **changes: Any) -> pipeline.Built:
    try:
        toolchain.linker("aarch64")
        return build(folder, target, **changes)
    except RuntimeMissingError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Built:
    return build(tmp_path_factory.mktemp("built") / "bundle")


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Built:
    if machines.emulator_path() is None:
        unavailable(f"no emulator of aarch64; on Debian: {machines.INSTALL_EMULATOR}")
    return board(tmp_path_factory.mktemp("crossed") / "bundle", **FLOAT)


def summaries(manifest: Any) -> dict[str, str]:
    return {claim.name: claim.summary for claim in manifest.claims if claim.held}


def test_a_bundle_holds_code_weights_and_what_runs_them(built: pipeline.Built) -> None:
    manifest = built.manifest
    with open_bundle(built.folder) as bundle:
        files = {file.path for file in bundle.manifest.files}
    assert files >= FILES | LIB | NATIVE | SOURCES | LICENCES
    for name in LICENCES:
        text = (built.folder / name).read_text(encoding="utf-8")
        assert ("Apache Software Foundation" if name.endswith(("LICENSE", "NOTICE")) else "Copyright") in text, name
    assert (manifest.backend, manifest.model, manifest.models) == ("tvm", "model.so", {"so": "model.so"})
    assert manifest.sizes.model_bytes == sum((built.folder / n).stat().st_size for n in ("model.so", "model.weights"))
    assert manifest.tools["tvm"] == canary.PINNED["apache-tvm"]
    held = summaries(manifest)
    assert set(held) == {"coverage", "parity", "skip", "bound", "accuracy"}
    assert held["coverage"] == "10 of 10 Gemm int8, 2 of 2 attentions"
    assert held["parity"].startswith("against float: 9 paths") and "lowered graph: 9 paths" in held["parity"]
    assert not (built.folder / backend.KERNELS).exists() and "matrix kernels: 13 with 4 open" in held["skip"]
    memory = manifest.bound
    assert memory.proven and "held by fresh processes on 3" in held["bound"]
    assert memory.bound_bytes == memory.weights_bytes + memory.arena_bytes


def test_its_readme_can_be_followed(built: pipeline.Built, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built.folder, folder)
    examples.assert_link_it_can_be_followed(folder)


def test_whatever_shows_a_budget_shows_the_same(built: pipeline.Built) -> None:
    """Also what was made before the bundle was written: the page in it, and what the command prints."""
    needed = built.manifest.sizes.model_bytes + (built.folder / "runner/native/runner").stat().st_size
    (check,) = check_budgets(built.manifest)
    with open_bundle(built.folder) as bundle:
        assert bundle.manifest == built.manifest and check_budgets(bundle.manifest) == (check,)
    assert check.value == pytest.approx(needed / 1e6) and "the program that loads them" in check.what
    told = json.loads((built.folder / "report.json").read_text())
    assert told["budgets"][0]["value"] == check.value and told["files"] == []
    assert f"| {FLASH_MB:g} | {check.value:.3g} |" in (built.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "mode", "told"), [(b"\x7fELF?", 0o755, "(Exec format error): it is for x86_64, this")]
)
def test_a_program_that_does_not_start_is_one_message(
    built: pipeline.Built, content: bytes, mode: int, told: str, tmp_path: Path
) -> None:
    """Such as one of another machine's bundle."""
    folder = tmp_path / "bundle"
    shutil.copytree(built.folder, folder)
    program = folder / "runner/native/runner"
    program.write_bytes(content)
    program.chmod(mode)
    rehash(folder)
    done = subprocess.run(
        [sys.executable, folder / "runner/run.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (19, 1) and f"{program} does not start {told}" in done.stderr


def assert_predicted(built: pipeline.Built, target: Target) -> None:
    predicted = predict(PROGRAM, target)
    assert predicted.bound_bytes == built.manifest.bound.bound_bytes
    assert predicted.model_bytes == (built.folder / "model.weights").stat().st_size
    assert predicted.int8_linears == sum(b.int8_linears for b in built.manifest.branches) + 2 * target.int8


def test_a_dry_run_predicts_what_is_built(built: pipeline.Built) -> None:
    assert_predicted(built, load_target(HERE))


def test_no_file_names_the_place_it_was_made_at(built: pipeline.Built) -> None:
    places = [str(path).encode() for path in (built.folder.parent, Path.cwd(), Path(sys.prefix))]
    for path in built.folder.rglob("*"):
        if path.is_file():
            assert not any(place in path.read_bytes() for place in places), path


@pytest.mark.parametrize("cores", [1, 3])
def test_equal_inputs_give_equal_bundles_on_any_number_of_cores(
    cores: int, built: pipeline.Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    again = build(tmp_path / "again")
    assert (again.folder / "manifest.json").read_bytes() == (built.folder / "manifest.json").read_bytes()


def test_it_verifies_and_profiles_branch_by_branch(built: pipeline.Built) -> None:
    assert all(golden.logit_error == 0 for golden in local.verify(built.archive).golden)
    measured = profile(built.folder, None, runs=8)
    assert {path.path: path.branches_open for path in measured.paths}["all_open"] == 4
    assert measured.environment.runtime_version == canary.PINNED["apache-tvm"]
    assert all((b.open_time_ms or 0) > 0 and b.skipped_time_ms is not None for b in measured.branches)
    # The process is the bundle's C++ runner: Python alone, with numpy and the runtime, holds 60 MB and more.
    assert measured.process is not None
    assert 1e6 < measured.process.imported_bytes < measured.process.loaded_bytes <= measured.process.peak_bytes < 20e6
    assert (measured.load_ms or 0) > 0 and (measured.first_run_ms or 0) > 0


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bundle's own run.py, where nothing but numpy and Pillow can be imported."""
    script = str(folder / "runner" / "run.py")
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('edgevit', 'onnx', 'tvm', 'tvm_ffi', 'onnxruntime')))\n"
        f"sys.argv = [{script!r}, *{arguments!r}]; runpy.run_path({script!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def unpacked(built: pipeline.Built, tmp_path: Path) -> Path:
    with zipfile.ZipFile(built.archive) as archive:
        archive.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    return folder


def test_it_runs_without_tvm_where_its_zip_was_unpacked(unpacked: Path, tmp_path: Path) -> None:
    done = run(unpacked, "--check")
    assert done.returncode == 0 and "3 golden outputs as expected" in done.stdout, done.stderr
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(photo)
    answers = run(unpacked, "--json", "--effort=-inf", str(photo), str(photo)).stdout.splitlines()
    assert [json.loads(line)["gates"] for line in answers] == [[0, 0, 0, 0]] * 2


def test_its_runner_refuses_another_machine_in_its_own_words(unpacked: Path) -> None:
    described = unpacked / "model.json"
    described.write_text(described.read_text().replace('"fma"', '"amx_fp64"'))
    resign(unpacked)
    rehash(unpacked)
    done = run(unpacked, "--check")
    assert done.returncode == 19 and "needs a CPU with amx_fp64" in done.stderr and not done.stdout


def test_aarch64_is_verified_in_an_emulator(crossed: pipeline.Built) -> None:
    held = summaries(crossed.manifest)
    assert set(held) == {"parity", "skip", "bound", "accuracy"}
    assert held["parity"].startswith("3 paths") and "13 with 4 open" in held["skip"] and "emulator" in held["skip"]
    assert crossed.manifest.bound.proven and crossed.manifest.bound.measured_peak_bytes is None
    assert all(golden.logit_error == 0 for golden in local.verify(crossed.archive).golden)
    with pytest.raises(DeviceError, match=r"machine code for aarch64, this machine is x86_64.* --device ssh"):
        profile(crossed.folder, None)


def test_without_an_emulator_a_bundle_says_what_nobody_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "emulator_path", lambda: None)
    manifest = board(tmp_path / "bundle", **FLOAT).manifest
    assert set(summaries(manifest)) == {"bound"} and not manifest.accuracy
    open_claims: list[Claim] = [claim for claim in manifest.claims if claim.held is None]
    assert {claim.name for claim in open_claims} == {"parity", "skip", "accuracy"}
    assert all("not verified: machine code for aarch64" in claim.summary for claim in open_claims)


def test_a_cpu_without_the_instructions_builds_what_it_cannot_check(
    built: pipeline.Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case, "cpu_flags", lambda: ("avx2",))
    manifest = build(tmp_path / "bundle").manifest
    claims = {claim.name: claim.summary for claim in manifest.claims if claim.held is None}
    assert set(claims) == {"parity", "skip", "accuracy"} and set(summaries(manifest)) == {"coverage", "bound"}
    assert "a CPU with fma, bmi1, bmi2, f16c, abm, movbe, which the one it was built on lacks" in claims["parity"]
    assert [case.path for case in manifest.golden] == [case.path for case in built.manifest.golden]


def always_open(self: Any, step: Any, functions: Any, parameters: Any, weights: Any, arena: Any) -> Any:
    """What a compiler that hoists makes of a gated step: the gate decides, the branch runs all the same."""
    if step.gate is not None:
        decided = replace(step, body=None, otherwise=None)
        arena = right(self, decided, functions, parameters, weights, arena)
    return right(self, replace(step, gate=None, otherwise=None), functions, parameters, weights, arena)


right = emit._Writer._step


def test_a_hoisted_branch_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit._Writer, "_step", always_open)
    with pytest.raises(ParityError):
        build(tmp_path / "bundle")
    # Where its result is thrown away, so that only its work is left:
    rest = tuple(each for each in verify_build.VERIFIERS if each.name != "parity")
    monkeypatch.setattr(verify_build, "VERIFIERS", rest)
    with pytest.raises(SkipError, match="b00_mhsa is closed .* still runs 4 nodes: b00_mhsa/norm, b00_mhsa/qkv"):
        build(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def worst_score(code: Any, vector: Any, lanes: int) -> Any:
    """The best of each lane is compared, and the least of them taken: a partner, but not the most alike."""
    return codegen.lane_min(code, vector, lanes)


def one_each(self: Any, index: Any) -> Any:
    """Every token counts as one patch, however many it stands for."""
    return codegen.number(1.0)


@pytest.mark.parametrize(
    ("where", "name", "wrong", "message"),
    [
        (merge_kernel, "lane_max", worst_score, "give away a cosine of up to"),
        (merge_kernel._Merge, "_size", one_each, "logits differ by up to"),
    ],
    ids=["pair", "weight"],
)
def test_a_wrong_merge_kernel_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, wrong: Any, message: str
) -> None:
    monkeypatch.setattr(where, name, wrong)
    program = tiny_program(depth=4, tokens="1:4,2:3")
    target = replace(lenient(HERE), **FLOAT)
    with pytest.raises(ParityError, match=message):
        pipeline.build(program, target, image_set(program), tmp_path / "bundle", recipe=RECIPE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("int8", "factor"), [(False, 1.01), (True, 2.0)])
def test_wrong_weights_fail_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: bool, factor: float
) -> None:
    """What rounding to int8 does to a small random model hides a wrong hundredth."""
    fold = patch_stem.fold_normalisation
    monkeypatch.setattr(patch_stem, "fold_normalisation", lambda spec, weight: fold(spec, factor * weight))
    with pytest.raises(ParityError):
        build(tmp_path / "bundle", int8=int8, attention="float32")


def test_memory_above_the_bound_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = backend.touched
    monkeypatch.setattr(backend, "touched", lambda *a: (1 << 20, touched(*a)[1]))
    with pytest.raises(BoundError, match="peak 1048576 bytes is above the bound"):
        build(tmp_path / "bundle")


def count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that makes other instructions of the kernels."""
    monkeypatch.setattr(counts, "count", lambda *_: 0)


def forget_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emitter that does not know how to quantize, and computes all in float."""
    lower = emit.lower
    monkeypatch.setattr(emit, "lower", lambda program, isa, plan=None, **options: lower(program, isa, None, **options))


def forget_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = attention._attention

    def in_float(shared: Shared, *arguments: Any) -> None:
        shared.plan = replace(shared.plan, attentions=())
        attend(shared, *arguments)

    monkeypatch.setattr(attention, "_attention", in_float)


def leave_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Linear in float beside nine in int8."""
    entry = Shared.entry
    monkeypatch.setattr(Shared, "entry", lambda self, linear: None if linear == "b01_ffn.fc2" else entry(self, linear))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (count_nothing, "0 of 10 Gemm int8, 0 of 2 attentions; .*b00_mhsa.qkv: 0 int8 and 1 float kernels"),
        (forget_the_plan, "0 of 10 Gemm int8, 0 of 2 attentions; .*stem: no kernel found"),
        (forget_attention, "10 of 10 Gemm int8, 0 of 2 attentions; .*b01_mhsa.attention: no int8"),
        (
            leave_one_out,
            r"9 of 10 Gemm int8, 2 of 2 attentions; [a-z0-9 ]*:\n  b01_ffn.fc2: no kernel found\n",
        ),
    ],
)
def test_int8_that_is_not_int8_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], told: str
) -> None:
    fault(monkeypatch)
    with pytest.raises(CoverageError, match=f"(?s){told}"):
        build(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_float_build_needs_no_coverage(tmp_path: Path) -> None:
    held = summaries(build(tmp_path / "bundle", **FLOAT).manifest)
    assert set(held) == {"parity", "skip", "bound", "accuracy"} and not held["parity"].startswith("against float")


@pytest.mark.parametrize("target", [BOARD, DOT_BOARD])
def test_int8_for_aarch64_is_verified_in_an_emulator(tmp_path: Path, target: str) -> None:
    if machines.emulator_path() is None:
        unavailable(f"no emulator of aarch64; on Debian: {machines.INSTALL_EMULATOR}")
    built = board(tmp_path / "bundle", target)
    held = summaries(built.manifest)
    assert set(held) == {"coverage", "parity", "skip", "bound", "accuracy"}
    assert (
        held["coverage"] == "10 of 10 Gemm int8, 2 of 2 attentions"
        and "against the lowered graph: 3 paths" in held["parity"]
    )
    assert all(golden.logit_error == 0 for golden in local.verify(built.archive).golden)


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("place", "name", "value", "told"),
    [
        (canary, "version", absent, r"apache-tvm is not installed; install it: pip install 'edgevit\[tvm\]'"),
        (library, "llvm_architectures", lambda: ("arm",), r"LLVM cannot compile for x86_64 \(it knows: arm\)"),
        (native, "linker", toolchain.linker, r"g\+\+ is not installed, .* apt install g\+\+"),
    ],
    ids=["TVM", "LLVM", "g++"],
)
def test_what_is_missing_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, value: Any, told: str
) -> None:
    monkeypatch.setattr(place, name, value)
    if name == "linker":
        monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(RuntimeMissingError, match=told) as caught:
        build(tmp_path / "bundle")
    assert caught.value.exit_code == 18 and not list(tmp_path.iterdir())
