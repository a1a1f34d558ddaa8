"""Nobody is called and nothing is written behind the user's back: with both runtimes, in commands and in run.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.program.program import save_program
from edgevit.util.resources import shipped
from tests.tiny import tiny_program

ROOT = Path(__file__).parents[1]


class Watched:
    """Runs programs with a home, a temporary folder and a library of its own that notes every attempt to connect."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.calls = folder / "calls"
        self.places = [folder / "home", folder / "temporary"]
        for place in self.places:
            place.mkdir()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "CI", "PYTHON"))}
        home, temporary = map(str, self.places)
        paths = {"HOME": home, "TMPDIR": temporary, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment = {
            **inherited,
            **paths,
            "LD_PRELOAD": str(library),
            "EDGEVIT_TEST_CALLS": str(self.calls),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr

    def found(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return calls + [str(path) for place in self.places for path in place.rglob("*")]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "calls.so"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(made), str(Path(__file__).with_name("calls.c"))]
    subprocess.run(command, check=True)
    return made


@pytest.fixture
def watched(tmp_path: Path, library: Path) -> Watched:
    return Watched(tmp_path, library)


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('localhost', 80)",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: s.sendto(b'x', ('127.0.0.1', 9))\nexcept OSError: pass",
        "import onnxruntime",
        "import openvino",
    ],
    ids=["connect", "look-up", "datagram", "onnxruntime alone", "openvino alone"],
)
def test_the_watch_sees_what_is_done(watched: Watched, program: str) -> None:
    """The runtimes alone do what edgevit keeps them from: were it not so, the next test would prove nothing."""
    if program == "import onnxruntime":
        program += "; onnxruntime.InferenceSession(b'')"
        with pytest.raises(AssertionError):  # no model; its use is noted first
            watched.run("-c", program)
    else:
        watched.run("-c", program)
    assert watched.found()


def commands(folder: Path, runtime: str) -> Sequence[Sequence[str]]:
    """Build, verify, profile and report, and the bundle's own program."""
    lenient = (shipped("targets") / f"x86-64-{runtime}.toml").read_text().splitlines()
    lines = [line for line in lenient if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))]
    target = folder / "lenient.toml"
    target.write_text('name = "lenient"\nmin_agreement = 0.0\nmax_top1_drop = 1.0\n' + "\n".join(lines))
    save_program(tiny_program(gated=True, skip=True), folder / "program")
    photos = folder / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(photos / f"{index}.png")
    bundle, edgevit = str(folder / "bundle"), ("-m", "edgevit")
    build = ("build", str(folder / "program"), "--target", str(target), "--calibration", str(photos), "-o", bundle)
    return [
        (*edgevit, *build),
        (*edgevit, "verify", f"{bundle}.zip"),
        (*edgevit, "profile", bundle, "--runs", "2"),
        (*edgevit, "report", bundle, f"{bundle}.measurement.json", "--html", f"{bundle}.html"),
        (*edgevit, "doctor"),
        ("-E", f"{bundle}/runner/run.py", str(photos / "0.png")),
        ("-E", f"{bundle}/runner/run.py", "--check"),
    ]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_nobody_is_called_and_no_file_is_left(watched: Watched, tmp_path: Path, runtime: str) -> None:
    for command in commands(tmp_path, runtime):
        watched.run(*command)
        assert watched.found() == [], command
