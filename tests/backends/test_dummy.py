"""A runtime is one folder and a line of the table: the dummy's, in tests, takes a model all the way through."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit import backends, pipeline
from edgevit.backends import backend, desk
from edgevit.backends.targets import accept, load_target
from edgevit.build.host import target_health
from edgevit.build.prediction import predict
from edgevit.devices import local
from edgevit.devices.profile import profile
from edgevit.errors import CoverageError, RuntimeMissingError, SkipError, TargetError
from edgevit.schema.target import Target
from tests.backends.dummy import desk as dummy_desk
from tests.building import RECIPE, image_set, lenient
from tests.tiny import tiny_program

PROGRAM = tiny_program(gated=True, skip=True, depth=2)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line."""
    monkeypatch.setitem(backends.MODULES, "dummy", "tests.backends.dummy")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Built:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.MODULES, "dummy", "tests.backends.dummy")
        return build(tmp_path_factory.mktemp("built") / "bundle")


def target() -> Target:
    return replace(lenient("x86-64-onnxruntime"), name="mine", backend="dummy", formats=("graph",), requires_flags=())


def build(folder: Path) -> pipeline.Built:
    return pipeline.build(PROGRAM, target(), image_set(PROGRAM), folder, recipe=RECIPE)


def test_it_is_found_by_its_name_and_nothing_else_is() -> None:
    assert backend("dummy").NAME == "dummy" and desk("dummy").BOUNDED
    with pytest.raises(RuntimeMissingError, match="unknown runtime 'dumy'; known: onnxruntime, openvino, tvm, dummy"):
        backend("dumy")


def test_the_pipeline_builds_and_verifies_with_it(built: pipeline.Built) -> None:
    manifest = built.manifest
    assert {claim.name: claim.held for claim in manifest.claims} == dict.fromkeys(
        ("coverage", "parity", "skip", "bound", "accuracy"), True
    )
    said = {claim.name: claim.summary for claim in manifest.claims}
    assert said["coverage"].startswith("10 of 10 Gemm int8")
    assert "no node of a closed branch runs" in said["skip"]
    assert manifest.backend == "dummy" and manifest.tools["dummy"] == "1.0"
    assert manifest.models == {"graph": "model.json"}
    loaded = sum((built.folder / name).stat().st_size for name in ("model.json", "model.npz"))
    assert manifest.sizes.model_bytes == loaded
    assert manifest.bound.proven and 0 < (manifest.bound.measured_peak_bytes or 0) < manifest.bound.arena_bytes


def test_a_device_verifies_and_profiles_its_bundle(built: pipeline.Built) -> None:
    verified = local.verify(built.folder)
    assert len(verified.golden) == 3
    measured = profile(built.folder, None, runs=4)
    assert [path.path for path in measured.paths] == ["all_open", "all_skipped", "real"]
    assert {branch.time_source for branch in measured.branches} == {"the dummy's clock"}
    assert all(branch.open_time_ms for branch in measured.branches) and measured.process is not None


def test_its_bundle_runs_alone_with_its_own_runner(built: pipeline.Built, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(image_set(PROGRAM).images[0]).save(photo)
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("edgevit", "tests", "onnx", "onnxruntime"))

    def run(*arguments: str) -> str:
        script = str(built.folder / "runner/run.py")
        call = f"sys.argv = {[script, *arguments]!r}; runpy.run_path({script!r}, run_name='__main__')"
        command = [sys.executable, "-I", "-W", "error", "-c", f"import runpy, sys; {blocked}; {call}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        return done.stdout

    assert "3 golden outputs as expected" in run("--check")
    assert len(json.loads(run(str(photo), "--json"))["gates"]) == 4


def test_equal_inputs_make_equal_bundles_with_it_too(built: pipeline.Built, tmp_path: Path) -> None:
    assert build(tmp_path / "bundle").archive.read_bytes() == built.archive.read_bytes()


def test_it_says_what_it_refuses_predicts_and_lacks() -> None:
    with pytest.raises(TargetError, match="2 faults:\n  - formats: got \\['ort'\\].*\n  - cpu: got 'skylake'; dummy"):
        accept(replace(target(), formats=("ort",), cpu="skylake"))
    predicted = predict(PROGRAM, target())
    assert predicted.holds == "float weights" and predicted.bound_bytes == 2 * predicted.model_bytes
    health = target_health(replace(target(), arch=load_target("rpi5-onnxruntime").arch), (), {"numpy": None})
    assert not health.builds and "numpy is missing: pip install numpy" in health.remarks


def test_its_evidence_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(CoverageError, match="planned int8 but not run so"):
        patch.setattr(dummy_desk, "linear_kernels", lambda build: ())
        build(tmp_path / "bundle")
    ran = ([("b00_mhsa.qkv/y", "Gemm")], np.zeros(4, np.uint8))
    with monkeypatch.context() as patch, pytest.raises(SkipError, match="b00_mhsa is closed"):
        patch.setattr(dummy_desk, "executed", lambda build: lambda image, effort: ran)
        build(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
