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

from tests.backends import examples
from tests.bundles import sample_bundle

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"points": examples.POINTS}
    return sample_bundle(tmp_path_factory.mktemp("example") / "tiny", runtime="onnxruntime", changes=changes)


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return examples.built(folder, "gcc")


def test_it_answers_what_the_runner_does_to_the_last_bit(folder: Path, program: Path, tmp_path: Path) -> None:
    examples.assert_answers_of_the_runner(folder, program, tmp_path / "image.raw")


def test_it_says_what_is_wrong(program: Path, tmp_path: Path) -> None:
    examples.assert_wrong_images_are_refused(program, tmp_path)


def test_an_effort_is_a_number_or_a_name(program: Path, tmp_path: Path) -> None:
    examples.assert_efforts_are_numbers_or_names(program, tmp_path / "image.raw")


def test_its_readme_can_be_followed(tmp_path: Path) -> None:
    examples.need_tools("cmake")
    examples.assert_link_it_can_be_followed(sample_bundle(tmp_path / "tiny", runtime="onnxruntime"))


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

    examples.need_tools("gcc")
    source, root = tmp_path / "example", tmp_path / "onnxruntime-linux-x64"
    shutil.copytree(folder / "example", source, ignore=shutil.ignore_patterns("build"))
    (root / "lib").mkdir(parents=True)
    words = ["cmake", "-B", "build", f"-DONNXRUNTIME_ROOT={root}"]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode and "python -m pip install -r requirements.txt, or name an unpacked" in " ".join(
        done.stderr.split()
    )
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (root / "lib/libonnxruntime.so").symlink_to(library)
    subprocess.run(words, cwd=source, capture_output=True, check=True)
    subprocess.run(["cmake", "--build", "build"], cwd=source, capture_output=True, check=True)
    assert "usage:" in subprocess.run([source / "build/example"], capture_output=True, text=True, check=False).stderr
