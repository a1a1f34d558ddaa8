"""The C++ runner as a process: many images, what it calls, and how it fails."""

from __future__ import annotations

import platform
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import BundleError, ImagesError
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.compile.native import build_runner  # noqa: E402
from edgevit.backends.tvm.run import process, runner  # noqa: E402
from edgevit.backends.tvm.run.process import ProcessRunner, command  # noqa: E402
from edgevit.backends.tvm.run.runner import MANIFEST, Manifest, read_manifest  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
PROGRAM = tiny_program(gated=True, skip=True)
IMAGES = tiny_images(PROGRAM.spec, 3)[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    library.write(lower(PROGRAM, isa("avx2")), path)
    build_runner("x86_64", path)
    return path


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder / MANIFEST)


def started(folder: Path, manifest: Manifest, *, trace: bool = False) -> ProcessRunner:
    return ProcessRunner(command(manifest, folder / "runner"), folder, manifest, trace=trace)


def test_images_one_after_the_other_give_what_the_runner_here_gives(folder: Path, manifest: Manifest) -> None:
    here, there = runner.load(folder), started(folder, manifest)
    for image in IMAGES:
        for effort in (0.0, 0.5, float("inf"), -1e30):
            for a, b in zip(here.run(image, effort), there.run(image, effort), strict=True):
                np.testing.assert_array_equal(a, b)
    there.close()


def test_every_kernel_of_a_run_is_told_and_none_of_a_closed_branch(folder: Path, manifest: Manifest) -> None:
    traced = started(folder, manifest, trace=True)
    calls, gates = traced.trace(IMAGES[0], float("-inf"))
    assert not gates.any() and {c.stage.partition(".")[2] for c in calls if c.stage.startswith("b")} == {"gate", "skip"}
    calls, gates = traced.trace(IMAGES[0], float("inf"))
    assert gates.all() and [c.kernel for c in calls if c.stage == "b00_mhsa"] == ["norm", "qkv", "attention", "proj"]
    assert all(c.ms >= 0 for c in calls)
    traced.close()


def test_a_wrong_image_is_refused_and_the_process_goes_on(folder: Path, manifest: Manifest) -> None:
    there = started(folder, manifest)
    with pytest.raises(ImagesError, match="uint8 RGB image"):
        there.run(IMAGES[0].astype(np.float32))
    with pytest.raises(ValueError, match="nan"):
        there.run(IMAGES[0], float("nan"))
    assert there.run(IMAGES[0])[0].shape == (1, 10)
    there.close()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"\0\0", "standard input ended inside an image"),
        (bytes(4 + 100), "standard input ended inside an image of 3072 bytes"),
        (struct.pack("<f", float("nan")) + bytes(3072), "an effort must be a number"),
    ],
)
def test_a_broken_stream_is_refused(folder: Path, sent: bytes, told: str) -> None:
    done = subprocess.run([folder / "runner", folder, "-"], input=sent, capture_output=True, check=False, timeout=60)
    assert done.returncode == 15 and told in done.stderr.decode() and not done.stdout


def test_what_the_process_says_becomes_the_error(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    for path in filter(Path.is_file, folder.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "runner").chmod(0o755)
    (tmp_path / "model.weights").write_bytes(b"1234")
    there = started(tmp_path, manifest)
    with pytest.raises(BundleError, match=r"the runner ended: .*model\.weights has 4 bytes"):
        there.run(IMAGES[0])
    there.close()
    (tmp_path / "runner").write_text("#!/bin/sh\necho broken >&2; exit 7\n")
    there = started(tmp_path, manifest)
    with pytest.raises(BundleError, match="the runner ended: broken"):
        there.run(IMAGES[0])


def test_another_architecture_needs_an_emulator_of_a_cpu_that_suffices(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = replace(manifest, machines=("aarch64", "arm64"), flags=("asimd",))
    monkeypatch.setattr(process, "emulator_path", lambda: "/usr/bin/qemu")
    i8mm = "max,sve=off,sme=off"  # qemu 7.2 computes SME wrongly
    for flags, cpu in ((("asimd",), "cortex-a53"), (("asimd", "asimddp"), "cortex-a76"), (("asimd", "i8mm"), i8mm)):
        assert command(replace(arm, flags=flags), Path("runner"))[:3] == ("/usr/bin/qemu", "-cpu", cpu)
    with pytest.raises(BundleError, match="no processor that is emulated here has all of asimd sve2"):
        command(replace(arm, flags=("asimd", "sve2")), Path("runner"))
    monkeypatch.setattr(process, "emulator_path", lambda: None)
    with pytest.raises(BundleError, match="apt install qemu-user-static"):
        command(arm, Path("runner"))
    with pytest.raises(BundleError, match="is for riscv64, this machine is x86_64"):
        command(replace(manifest, machines=("riscv64",)), Path("runner"))
