"""`edgevit profile --device`: the same measurement, made on a board behind a real sshd."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.backends import MODULES
from edgevit.bundle.read import open_bundle
from edgevit.cli import main
from edgevit.devices import python_program
from edgevit.devices.machine import StepResult, find
from edgevit.devices.profile import profile
from edgevit.devices.request import PROGRAM
from edgevit.devices.runtimes import WORKERS
from edgevit.devices.ssh import board as board_module
from edgevit.devices.ssh.session import BoardSession
from edgevit.errors import BundleError, DeviceError
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.util import strict_json
from tests.bundles import sample_bundle
from tests.devices.board import Board
from tests.devices.conftest import board, running  # noqa: F401 (fixtures)
from tests.devices.fakes import FakeSession
from tests.tiny import tiny_images, tiny_spec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A name that a shell would take to pieces.
    return sample_bundle(tmp_path_factory.mktemp("bundle") / 'it\'s a "tiny" $(touch pwned); one')


def test_profile_on_a_board(bundle: Path, board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, image in enumerate(tiny_images(tiny_spec(), 3, seed=1)):
        Image.fromarray(image).save(photos / f"{index}.png")
    out = tmp_path / "board.json"
    asked = ["--device", board.url, "--images", str(photos), "--runs", "8", "--cpus", "0", "-o", str(out)]
    assert main(["profile", str(bundle), *asked]) == 0
    captured = capsys.readouterr()
    assert "1 thread, pinned to CPUs 0" in captured.out and "all_skipped" in captured.out
    assert not list(board.folder.rglob("pwned"))
    measured = read_measurement(out)
    with open_bundle(bundle) as opened:
        assert measured.bundle_sha256 == opened.sha256
    assert measured.device == "ssh" and measured.environment.cpus == (0,)
    assert (measured.images.count, measured.images.golden) == (3, False)
    assert [p.path for p in measured.paths] == ["all_open", "all_skipped", "real"]
    assert [p.branches_open for p in measured.paths][:2] == [4, 0]
    assert measured.process is not None and measured.memory is not None and measured.memory.of == "runtime"
    assert captured.err.count("warning: ") == len(measured.warnings)
    assert main(["report", str(bundle), str(out)]) == 0


def test_what_the_board_refuses_is_one_message_and_nothing_is_written(
    bundle: Path,
    board: Board,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "board.json"
    assert main(["profile", str(bundle), "--device", board.url, "--cpus", "4000", "-o", str(out)]) == 21
    assert "cannot measure the bundle: CPUs 4000 were asked for; this machine offers 0" in capsys.readouterr().err
    assert main(["profile", str(bundle), "--device", "ssh://-oProxyCommand=x@b", "-o", str(out)]) == 21
    assert main(["profile", str(bundle), "--device", board.url, "--cpus", "3-1", "-o", str(out)]) == 2
    assert "is no list of CPUs" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_sent_measures_with_numpy_and_the_runtime_alone(bundle: Path, tmp_path: Path) -> None:
    files = python_program.program_files((PROGRAM, *WORKERS, MODULES["onnxruntime"]))
    for name, content in files.items():
        assert isinstance(content, Path)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content.read_bytes())
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Blocker:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'timm', 'onnx', 'PIL', 'rich', 'click', 'safetensors'):\n"
        "            raise ImportError(name + ' is blocked')\nsys.meta_path.insert(0, Blocker())\n"
    )
    (tmp_path / "bundle").symlink_to(bundle)
    np.save(tmp_path / "images.npy", tiny_images(tiny_spec(), 1))
    used, allowed = {"count": 1, "digest": "0", "golden": False}, {"seconds": 600, "memory_bytes": 1 << 31}
    asked = {"used": used, "runs": 2, "threads": 1, "cpus": None, "backend": MODULES["onnxruntime"]}
    request = {**asked, "bundle": python_program.BUNDLE, "allowed": allowed}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert "PIL is blocked" in python("-c", "import PIL").stderr
    done = python("-m", "edgevit.devices.board_program", json.dumps(request))
    assert not done.returncode, done.stderr
    assert "measurement" in json.loads(done.stdout.splitlines()[-1])


def answering(monkeypatch: pytest.MonkeyPatch, result: StepResult) -> None:
    """Let the program on every board end like this."""
    there = FakeSession({"machine": os.uname().machine}, {"measure": result})
    monkeypatch.setattr(board_module, "connected", lambda *_, **__: nullcontext(there))


def test_answers_are_not_trusted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(answer: Any) -> Measurement:
        answering(monkeypatch, StepResult(status=0, out=f"a greeting\n{json.dumps(answer)}\n", err=""))
        return profile(bundle, None, find("ssh://board"))

    good = {"measurement": strict_json.to_data(onboard_measurement(bundle))}
    assert asked(good).device == "ssh"
    wrong: list[Any] = [[], None, {"measurement": {"schema": 1}}, {"measurement": good["measurement"] | {"more": 1}}]
    for answer in wrong:
        with pytest.raises(DeviceError, match="cannot be read"):
            asked(answer)
    with pytest.raises(BundleError, match="another bundle"):
        asked({"measurement": good["measurement"] | {"bundle_sha256": "0" * 64}})
    with pytest.raises(DeviceError) as caught:
        asked({"error": "bad\x1b[2J"})
    assert "\x1b" not in str(caught.value)
    other = good["measurement"] | {"environment": good["measurement"]["environment"] | {"runtime_version": "1.0"}}
    assert "the device runs onnxruntime 1.0, the bundle was verified with" in asked({"measurement": other}).warnings[-1]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (StepResult(status=1, out="", err="Traceback\nValueError: no such kernel\n"), "ValueError: no such kernel"),
        (StepResult(status=0, out="{", err=""), "exit code 0"),
        (StepResult(status=137, out="", err=""), "SIGKILL"),
        (StepResult(status=1, out="", err="\x1b[31mred"), "[31mred"),
    ],
)
def test_a_program_that_fails_is_told_with_its_last_words(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, result: StepResult, said: str
) -> None:
    answering(monkeypatch, result)
    with pytest.raises(DeviceError) as caught:
        profile(bundle, None, find("ssh://board"))
    assert str(caught.value) == f"board could not run the bundle: {said}"


def test_a_board_that_lacks_something_is_told_before_anything_is_copied(
    bundle: Path,
    board: Board,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusal(path: Path = bundle, python: str = "python3") -> str:
        with pytest.raises(DeviceError) as caught:
            profile(path, None, find(board.url, python=python), runs=1)
        return str(caught.value)

    monkeypatch.setattr(BoardSession, "_copy", lambda *_: pytest.fail("something was copied"))
    assert "127.0.0.1 has no nopython" in refusal(python="nopython")
    with monkeypatch.context() as patch:
        needs = (("numpy", "numpy"), ("no_such_runtime", "no-such-runtime==1.2"))
        patch.setattr(python_program, "requirements", lambda _: needs)
        said = refusal()
    assert "lacks no-such-runtime==1.2; install it there: python3 -m pip install numpy no-such-runtime==1.2" in said
    with monkeypatch.context() as patch:
        patch.setattr(python_program, "OLDEST_PYTHON", (9, 9))
        assert "needed: 9.9 or newer; name another one with --python" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr("edgevit.devices.board_environment.machine_names", lambda _: ("m68k",))
        assert f"is {os.uname().machine}, the bundle's target" in refusal()


@pytest.mark.parametrize("python", ["-c", "a;b", "a b", "$(a)", "", "a\nb", "a'b", "~/x"])
def test_a_hostile_name_of_a_python_is_refused_before_connecting(python: str) -> None:
    with pytest.raises(DeviceError, match="must be a plain name or path"):
        find("ssh://board", python=python)


def onboard_measurement(bundle: Path) -> Measurement:
    from tests.report.sample import measurement

    with open_bundle(bundle) as opened:
        return measurement(bundle_sha256=opened.sha256)


def test_pip_is_told_the_release_that_the_bundle_was_verified_with(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        manifest = dataclasses.replace(opened.manifest, backend="openvino", tools={"openvino": "2026.4.1-22982-e21"})
    assert python_program.requirements(manifest) == (("numpy", "numpy"), ("openvino", "openvino==2026.4.1"))
    assert python_program.requirements(dataclasses.replace(manifest, tools={}))[1] == ("openvino", "openvino")
