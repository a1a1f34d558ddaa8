"""What `make chaos` does for an hour, for a minute: a few kills, every writer without room, a short soak."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgevit.program.program import save_program
from tests.backends.tvm.available import MISSING, REASON
from tests.bundles import sample_bundle, sample_manifest
from tests.chaos import soak
from tests.tiny import tiny_program

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", ["kills", "faults"])
def test_nothing_breaks(part: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.short", part], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["rows"] >= 8 and not answer["broke"], "\n".join(map(str, answer["broke"]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def tvm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING:
        pytest.skip(REASON)
    if platform.machine() != "x86_64":
        pytest.skip("the targets tried are for x86-64")
    folder = tmp_path_factory.mktemp("tvm")
    save_program(tiny_program(gated=True), folder / "program")
    return soak.build(str(folder / "program"), "tvm", folder)


@pytest.mark.parametrize("runner", soak.RUNNERS)
def test_nothing_grows_and_threads_and_processes_agree(
    runner: str, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if runner.startswith("tvm"):
        bundle = request.getfixturevalue("tvm_bundle")
    else:
        bundle = sample_bundle(tmp_path / "bundle", runtime=runner)
    soaked = soak.soak(bundle, runner, images, runs=200)
    assert not soaked.wrong
    assert len(soaked.resident) == soak.SAMPLES + 1 and soaked.gates >= 600 * 4


def test_a_soak_tells_what_does_not_fit() -> None:
    manifest = sample_manifest(tiny_program(gated=True))
    gates = soak.Gates(manifest, 1)
    gates.check(0, np.inf, np.ones(4, np.uint8))
    gates.check(0, 1.0, np.array([1, 0, 1, 1], np.uint8))
    with pytest.raises(AssertionError, match="the first gate is closed at 2.0, open at 1.0"):
        gates.check(0, 2.0, np.array([0, 1, 1, 1], np.uint8))
    with pytest.raises(AssertionError, match="effort -inf"):
        soak.Gates(manifest, 1).check(0, -np.inf, np.array([0, 0, 0, 1], np.uint8))
    merges = soak.Gates(sample_manifest(tiny_program()), 1)
    for effort, left in ((0.0, 20), (1.0, 24), (1.0, 24), (-np.inf, 16), (np.inf, 24)):
        merges.check(0, effort, np.ones(4, np.uint8), np.array([left], np.int32))
    with pytest.raises(AssertionError, match="24 tokens at effort inf, 25 at 2.0"):
        merges.check(0, 2.0, np.ones(4, np.uint8), np.array([25], np.int32))
