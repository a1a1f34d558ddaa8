"""The C++ program in a bundle of OpenVINO: it compiles as its README says and answers what the bundle's runner does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.absent import unavailable
from tests.bundles import sample_bundle

pytest.importorskip("openvino")

ANSWERS = """
import json, runpy, sys
import numpy as np
found = runpy.run_path("runner/run.py")
manifest = json.load(open("manifest.json"))
run = found["load_model"](manifest, manifest["target"]["threads"])
answers = [run(np.load(path), float(effort)) for path, effort in zip(sys.argv[1::2], sys.argv[2::2])]
print(json.dumps([[output.ravel().tolist() for output in answer] for answer in answers]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_bundle(tmp_path_factory.mktemp("example") / "tiny", runtime="openvino")


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        unavailable("the example is built with cmake and g++: apt install cmake g++")
    flags = "-Wall -Wextra -Wpedantic -Werror"
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    for words in (["-B", "build", python, f"-DCMAKE_CXX_FLAGS={flags}"], ["--build", "build"]):
        done = subprocess.run(["cmake", *words], cwd=folder / "example", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "example/build/example"


def answered(program: Path, image: Path, *effort: str) -> subprocess.CompletedProcess[str]:
    words = [str(program), "..", str(image), *effort]
    return subprocess.run(words, cwd=program.parents[1], capture_output=True, text=True, check=False)


def test_it_answers_what_the_runner_does_to_the_last_bit(folder: Path, program: Path, tmp_path: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    efforts = [{"all_open": "inf", "all_skipped": "-inf"}.get(case["path"], "0") for case in golden]
    words = [word for case, effort in zip(golden, efforts, strict=True) for word in (case["image"], effort)]
    told = subprocess.run(
        [sys.executable, "-c", ANSWERS, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    seen = set()
    for case, effort, (logits, gates) in zip(golden, efforts, json.loads(told), strict=True):
        raw = tmp_path / "image.raw"
        raw.write_bytes(np.load(folder / case["image"]).tobytes())
        done = answered(program, raw, effort)
        assert done.returncode == 0, done.stderr
        scores = {int(c): np.float32(v) for c, v in re.findall(r"^class (\d+): (\S+)$", done.stdout, re.M)}
        best = np.argsort(-np.array(logits), kind="stable")[:5]
        assert scores == {int(c): np.float32(logits[c]) for c in best}
        assert done.stdout.splitlines()[-1] == " ".join(map(str, gates)) + " (branches that ran)"
        seen.add(tuple(gates))
    assert len(seen) > 1


def test_it_says_what_is_wrong(folder: Path, program: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.raw"
    short.write_bytes(b"\0")
    assert "does not hold" in answered(program, short).stderr
    assert answered(program, tmp_path / "absent.raw").returncode == 1


def test_another_version_of_the_runtime_is_refused(folder: Path, program: Path, tmp_path: Path) -> None:
    """As the runner does: memory and answers were verified with one."""
    source = tmp_path / "example"
    shutil.copytree(folder / "example", source, ignore=shutil.ignore_patterns("build"))
    text = (source / "CMakeLists.txt").read_text()
    (source / "CMakeLists.txt").write_text(re.sub(r'VERIFIED "[^"]+"', 'VERIFIED "1999.1"', text))
    words = ["cmake", "-B", "build", f"-DPython3_EXECUTABLE={sys.executable}"]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode and "verified with 1999.1" in " ".join(done.stderr.split())
    assert subprocess.run([*words, "-DANY_VERSION=ON"], cwd=source, capture_output=True, check=False).returncode == 0
