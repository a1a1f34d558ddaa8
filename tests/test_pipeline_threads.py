"""The main job for a target with two threads and TVM: built, verified, measured on both and on one."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgevit import pipeline
from edgevit.build.prediction import predict
from edgevit.devices import local
from edgevit.devices.profile import profile
from edgevit.errors import DeviceError
from edgevit.schema.target import Target, load_target
from edgevit.util.resources import shipped
from tests.backends.tvm.available import import_or_skip
from tests.building import RECIPE, image_set

import_or_skip()

from edgevit.backends.tvm.codegen import threads  # noqa: E402
from tests.test_pipeline_tvm import HERE, PROGRAM, run, summaries  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A user's own file."""
    path = tmp_path_factory.mktemp("targets") / "mine.toml"
    text = (shipped("targets") / f"{HERE}.toml").read_text(encoding="utf-8")
    for line, mine in (
        (f'name = "{HERE}"', 'name = "mine"'),
        ("threads = 1\n", "threads = 2\n"),
        ("min_agreement = 0.93", "min_agreement = 0.0"),
        ("max_top1_drop = 0.015", "max_top1_drop = 1.0"),
    ):
        assert line in text
        text = text.replace(line, mine, 1)
    path.write_text(text, encoding="utf-8")
    return load_target(path)


@pytest.fixture(scope="module")
def built(target: Target, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Built:
    folder = tmp_path_factory.mktemp("built") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "WORTH", 0)  # the small model's kernels too
        made = pipeline.build(PROGRAM, target, image_set(PROGRAM), folder, recipe=RECIPE)
        assert predict(PROGRAM, target).bound_bytes == made.manifest.bound.bound_bytes
    return made


def test_every_claim_holds_with_two_threads(built: pipeline.Built) -> None:
    held = summaries(built.manifest)
    assert set(held) == {"coverage", "parity", "skip", "bound", "accuracy"}
    assert held["coverage"] == "10 of 10 Gemm int8, 2 of 2 attentions"
    assert "held by fresh processes on 3" in held["bound"]
    one = predict(PROGRAM, load_target(HERE))
    assert (
        one.bound_bytes and built.manifest.bound.bound_bytes > one.bound_bytes
    )  # what the second thread has of its own


def test_it_verifies_and_profiles_on_as_many_threads_and_on_fewer(built: pipeline.Built) -> None:
    for asked, used in ((None, 2), (2, 2), (1, 1)):
        assert all(golden.logit_error == 0 for golden in local.verify(built.archive, threads=asked).golden)
        measured = profile(built.folder, None, runs=8, threads=asked)
        assert measured.environment.threads == used
        assert {path.path: path.branches_open for path in measured.paths}["all_open"] == 4
        assert all((b.open_time_ms or 0) > 0 for b in measured.branches)
    for command in (local.verify, lambda *a, **b: profile(a[0], None, **b)):
        with pytest.raises(DeviceError, match=r"compiled for 2 threads, got 3; omit --threads, or build for"):
            command(built.archive, threads=3)


def test_its_own_runner_takes_as_many_and_fewer(built: pipeline.Built, tmp_path: Path) -> None:
    for options in ((), ("--threads", "2"), ("--threads", "1")):
        done = run(built.folder, "--check", *options)
        assert done.returncode == 0 and "3 golden outputs as expected" in done.stdout, done.stderr
    done = run(built.folder, "--check", "--threads", "3")
    assert done.returncode == 2 and "shared out among 2, got --threads 3; give fewer" in done.stderr
