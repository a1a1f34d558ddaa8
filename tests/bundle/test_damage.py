"""One bit of a bundle, turned anywhere: whoever loads or checks it refuses it, and runs nothing of it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.cli import main
from edgevit.devices import local
from edgevit.errors import BundleError, RuntimeMissingError
from tests.absent import unavailable
from tests.backends.tvm.available import needs_tvm
from tests.building import RECIPE, image_set, lenient
from tests.bundles import rehash, sample_bundle
from tests.tiny import tiny_program

PROGRAM = tiny_program(gated=True, skip=True)
TURNS = 100
MANIFEST = "manifest.json"
MAPPED = ("model.so", "model.weights", "model.json")


def onnx_bundle(folder: Path) -> Path:
    return sample_bundle(folder, labels=[f"thing {i}" for i in range(10)])


def tvm_bundle(folder: Path) -> Path:
    from edgevit import pipeline

    try:
        return pipeline.build(PROGRAM, lenient("x86-64-v3-tvm"), image_set(PROGRAM), folder, recipe=RECIPE).folder
    except RuntimeMissingError as error:
        unavailable(str(error))


@pytest.fixture(scope="module", params=[onnx_bundle, pytest.param(tvm_bundle, marks=needs_tvm)], ids=["onnx", "tvm"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("bundle") / "tiny")
    return made


@pytest.fixture(scope="module")
def tvm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tvm_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@contextmanager
def turned(path: Path, bit: int) -> Iterator[None]:
    """The file with one of its bits turned."""
    raw = path.read_bytes()
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(raw)


def drawn(folder: Path, names: Sequence[str], seed: int) -> Iterator[tuple[str, int]]:
    """A file and a bit in it, TURNS times; small files are drawn as often as large ones."""
    rng = np.random.default_rng(seed)
    for _ in range(TURNS):
        name = names[int(rng.integers(len(names)))]
        yield name, int(rng.integers(8 * (folder / name).stat().st_size))


def names(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if (folder / name).stat().st_size)


def test_verify_refuses_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, bit in drawn(bundle, names(bundle), 0):
        with turned(bundle / name, bit):
            assert main(["verify", str(bundle)]) == BundleError.exit_code, (name, bit)
            assert name in capsys.readouterr().err
    assert main(["verify", str(bundle)]) == 0


def own_runner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the program that a bundle brings, which leaves nothing in it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("own_runner", folder / "runner/run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_own_runner_refuses_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = own_runner(bundle, monkeypatch)
    monkeypatch.setattr(runner, "load_model", lambda *_: pytest.fail("it was loaded"))
    photo = str(tmp_path / "photo.png")
    Image.new("RGB", (64, 64)).save(photo)
    every = names(bundle)
    used = [name for name in every if name == MANIFEST or name.startswith(runner.used_files(runner.read_manifest()))]
    assert len(used) >= 4
    for option, among in (("--check", every), (photo, used)):
        monkeypatch.setattr(sys, "argv", ["run.py", option])
        for name, bit in drawn(bundle, among, 1):
            with turned(bundle / name, bit):
                with pytest.raises(SystemExit) as ended:
                    runner.main()
                assert ended.value.code == 19 and name in capsys.readouterr().err, (name, bit)


@needs_tvm
def test_the_runner_without_python_refuses_it(tvm: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(image_set(PROGRAM).images[0].tobytes())
    command = [tvm / "runner/native/runner", tvm, image]
    for name, bit in drawn(tvm, MAPPED, 2):
        with turned(tvm / name, bit):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 19 and name in done.stderr and not done.stdout, (name, bit, done)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@needs_tvm
def test_a_swapped_program_is_not_started(tvm: Path, tmp_path: Path) -> None:
    """Neither the native runner, nor a library put beside it, nor one of Python's put beside run.py, nor model.so."""
    folder, trace = tmp_path / "tiny", tmp_path / "trace"
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    for name, content in (
        ("runner/native/runner", f"#!/bin/sh\ntouch {trace}\nexit 0\n"),
        ("runner/native/libstdc++.so.6", "another"),
        ("runner/numpy.py", f"open({str(trace)!r}, 'w')"),
        ("runner/json.py", f"open({str(trace)!r}, 'w')"),
    ):
        shutil.copytree(tvm, folder)
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
        for option in (str(photo), "--check"):
            done = subprocess.run(
                [sys.executable, folder / "runner/run.py", option], capture_output=True, text=True, check=False
            )
            # What is never loaded is told by --check alone.
            beside = name.endswith(".py") and option != "--check"
            assert done.returncode == (0 if beside else 19), done
            assert beside or f"{name} differ from manifest.json" in done.stderr
        assert main(["verify", str(folder)]) == BundleError.exit_code
        assert not trace.exists()
        shutil.rmtree(folder)


@needs_tvm
def test_a_strangers_library_is_executed_by_nothing_but_run(tvm: Path, tmp_path: Path) -> None:
    """All hashes fit; the library would leave a trace as soon as it is loaded."""
    folder, trace = tmp_path / "tiny", tmp_path / "trace"
    shutil.copytree(tvm, folder)
    source = tmp_path / "trace.cc"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        f'__attribute__((constructor)) void loaded() {{ open("{trace}", O_CREAT | O_WRONLY, 0600); _exit(77); }}\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", folder / "model.so"], check=True)
    from tests.backends.tvm.native_runner import resign

    resign(folder)
    rehash(folder)
    assert main(["verify", str(folder)]) == 0
    assert local.inspect(folder).manifest.name == local.inspect(tvm).manifest.name
    assert main(["report", str(folder), "--json"]) == 0
    assert not trace.exists()
    code = f"import sys; from edgevit.cli import main; sys.exit(main(['verify', {str(folder)!r}, '--run']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == BundleError.exit_code and trace.exists(), done
    assert "ended the process that ran it (exit code 77)" in done.stderr
