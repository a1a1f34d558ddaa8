"""The C program in a bundle of ONNX Runtime: it compiles as its README says and answers what the runner does."""

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

pytest.importorskip("onnxruntime")

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
    return sample_bundle(tmp_path_factory.mktemp("example") / "tiny", runtime="onnxruntime")


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    if shutil.which("cmake") is None or shutil.which("gcc") is None:
        unavailable("the example is built with cmake and gcc: apt install cmake gcc")
    flags = "-Wall -Wextra -Wpedantic -Werror"
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    for words in (["-B", "build", python, f"-DCMAKE_C_FLAGS={flags}"], ["--build", "build"]):
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
    text = (source / "main.c").read_text()
    (source / "main.c").write_text(re.sub(r'VERIFIED = "[^"]+"', 'VERIFIED = "1.2.3"', text))
    golden = json.loads((folder / "manifest.json").read_text())["golden"][0]
    raw = tmp_path / "image.raw"
    raw.write_bytes(np.load(folder / golden["image"]).tobytes())
    for options, code in (((), 1), (("-DANY_VERSION=ON",), 0)):
        configure = ["cmake", "-B", "build", f"-DPython3_EXECUTABLE={sys.executable}", *options]
        for words in (configure, ["cmake", "--build", "build"]):
            subprocess.run(words, cwd=source, capture_output=True, check=True)
        done = subprocess.run([source / "build/example", folder, raw], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert not code or "the bundle was verified with 1.2.3: install that" in done.stderr


def test_a_runtime_is_taken_from_a_release_archive_or_asked_for(folder: Path, tmp_path: Path) -> None:
    """Laid out as published: the library under `lib`."""
    import onnxruntime

    if shutil.which("cmake") is None or shutil.which("gcc") is None:
        unavailable("the example is built with cmake and gcc: apt install cmake gcc")
    source, root = tmp_path / "example", tmp_path / "onnxruntime-linux-x64"
    shutil.copytree(folder / "example", source, ignore=shutil.ignore_patterns("build"))
    (root / "lib").mkdir(parents=True)
    words = ["cmake", "-B", "build", f"-DONNXRUNTIME_ROOT={root}"]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode and "pip install -r ../requirements.txt, or name an unpacked" in " ".join(
        done.stderr.split()
    )
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (root / "lib/libonnxruntime.so").symlink_to(library)
    subprocess.run(words, cwd=source, capture_output=True, check=True)
    subprocess.run(["cmake", "--build", "build"], cwd=source, capture_output=True, check=True)
    assert "usage:" in subprocess.run([source / "build/example"], capture_output=True, text=True, check=False).stderr
