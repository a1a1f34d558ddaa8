"""The C++ program in a bundle of OpenVINO: it compiles as its README says and answers what the bundle's runner does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import examples
from tests.bundles import sample_bundle

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"points": examples.POINTS}
    return sample_bundle(tmp_path_factory.mktemp("example") / "tiny", runtime="openvino", changes=changes)


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return examples.built(folder, "g++")


def test_it_answers_what_the_runner_does_to_the_last_bit(folder: Path, program: Path, tmp_path: Path) -> None:
    examples.assert_answers_of_the_runner(folder, program, tmp_path / "image.raw")


def test_it_says_what_is_wrong(program: Path, tmp_path: Path) -> None:
    examples.assert_wrong_images_are_refused(program, tmp_path)


def test_an_effort_is_a_number_or_a_name(program: Path, tmp_path: Path) -> None:
    examples.assert_efforts_are_numbers_or_names(program, tmp_path / "image.raw")


def test_its_readme_can_be_followed(tmp_path: Path) -> None:
    examples.need_tools("cmake")
    examples.assert_link_it_can_be_followed(sample_bundle(tmp_path / "tiny", runtime="openvino"))


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
