"""Files: what is written, read back, refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import BundleError, DeviceError, OutputError, RuntimeMissingError
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from edgevit.backends import tvm as backend  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import Lowered, lower  # noqa: E402
from edgevit.backends.tvm.run import runner  # noqa: E402
from edgevit.backends.tvm.run.runner import LIBRARY, MANIFEST, WEIGHTS  # noqa: E402
from tests.backends.tvm import older  # noqa: E402
from tests.backends.tvm.native_runner import resign  # noqa: E402

PROGRAM = tiny_program(gated=True, skip=True)


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    return lower(PROGRAM, isa("avx2"))


@pytest.fixture(scope="module")
def folder(lowered: Lowered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    assert library.write(lowered, path)[:3] == (LIBRARY, WEIGHTS, MANIFEST)
    return path


def copy(folder: Path, target: Path) -> Path:
    for path in filter(Path.is_file, folder.iterdir()):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_files_run_as_the_module_does(folder: Path, lowered: Lowered) -> None:
    here, there = library.runner(lowered), runner.load(folder)
    for image in tiny_images(PROGRAM.spec, 3)[:, None]:
        for effort in (0.0, float("inf"), float("-inf")):
            for a, b in zip(here.run(image, effort), there.run(image, effort), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", ["example", "Plugin", "deadline.onnx", "edgevit", "8-bit", "über"])
def test_a_name_of_a_model_is_never_that_of_another_file(lowered: Lowered, model: str) -> None:
    executable = library.build(lowered)
    files = [set(library.c_library(lowered, executable, library.name_of(name)).files()) for name in (model, "tiny")]
    assert len(files[0]) == len(files[1]) and library.name_of(model) not in {Path(name).stem for name in files[1]}


def test_equal_programs_give_equal_files(folder: Path, tmp_path: Path) -> None:
    library.write(lower(PROGRAM, isa("avx2")), tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert {LIBRARY, WEIGHTS, MANIFEST, "lib/libmodel.a", "lib/libmodel.so", "lib/model.h"} < files
    for name in files:
        digests = [hashlib.sha256((path / name).read_bytes()).hexdigest() for path in (folder, tmp_path)]
        assert digests[0] == digests[1], name


def test_weights_are_in_their_file_and_not_in_the_library(folder: Path) -> None:
    fc1 = PROGRAM.weights["b00_ffn.fc1.weight"]
    row = np.ascontiguousarray(fc1[0, :8]).tobytes()
    assert row in (folder / WEIGHTS).read_bytes()
    assert row not in (folder / LIBRARY).read_bytes()


def test_the_library_names_no_place_it_was_made_at(folder: Path) -> None:
    raw = (folder / LIBRARY).read_bytes()
    for part in (str(folder), "/tmp", str(Path.cwd())):
        assert part.encode() not in raw


def test_more_threads_than_it_was_compiled_for_are_refused(folder: Path) -> None:
    with pytest.raises(DeviceError, match="compiled for 1 thread, got 2; omit --threads, or build for a target"):
        backend.load(folder, threads=2)


def test_missing_and_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, damage, told in (
        (MANIFEST, None, "cannot read"),
        (MANIFEST, b"{", "cannot read"),
        (MANIFEST, b'{"schema": 99}', "schema 99"),
        (MANIFEST, b'{"schema": 1}', "faults"),
        (MANIFEST, b'{"schema": 2}', "faults"),
        (MANIFEST, b'{"schema": 3}', "faults"),
        (MANIFEST, bytes(3 << 20), "has 3145728 bytes, allowed for model.json of a compiled model: 2097152 bytes"),
        (WEIGHTS, None, "cannot read"),
        (WEIGHTS, b"1234", "has 4 bytes"),
        (LIBRARY, None, "cannot read"),
        (LIBRARY, b"no library", "has 10 bytes"),
    ):
        copy(folder, tmp_path)
        if damage is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(damage)
        with pytest.raises(BundleError, match=told):
            runner.load(tmp_path)


def test_what_is_listed_with_its_hash_is_still_checked(folder: Path, tmp_path: Path) -> None:
    """Where somebody made the hashes fit, the loader tells what is no library, and their size short weights."""
    for name, content, told in ((LIBRARY, b"no library", "cannot load"), (WEIGHTS, b"1234", "has 4 bytes")):
        (copy(folder, tmp_path) / name).write_bytes(content)
        resign(tmp_path)
        with pytest.raises(BundleError, match=told):
            runner.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("files", [], "does not list it"),
        ("threads", 300, "threads = 300, allowed: 1 to 64"),
        ("threads", 0, "threads = 0, allowed: 1 to 64"),
        ("threads", 10**6, "threads = 1000000, allowed: 1 to 64"),
        ("threads", 10**400, "integer of 401 digits"),
        ("arena", 10**12, "arena in bytes 4000000000000 .0 to 17179869184 bytes."),
        ("arena", -1, "arena in bytes -4"),
        ("height", 10**9, "height 1000000000 .1 to 8192 pixels."),
        ("width", 0, "width 0"),
        ("classes", 10**12, "classes 1000000000000"),
        ("branches", 10**12, "branches 1000000000000"),
        ("weights", [{}] * 60_000, "more"),
    ],
)
def test_what_nobody_writes_is_refused(folder: Path, tmp_path: Path, key: str, value: object, told: str) -> None:
    data = json.loads((copy(folder, tmp_path) / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**data, key: value}))
    resign(tmp_path)
    with pytest.raises(BundleError, match=told):
        runner.load(tmp_path)


def test_a_changed_file_is_neither_mapped_nor_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "runtime", lambda: pytest.fail("the library was loaded"))
    monkeypatch.setattr(runner, "map_weights", lambda *_: pytest.fail("the weights were mapped"))
    for name in (LIBRARY, WEIGHTS, MANIFEST):
        raw = bytearray((copy(folder, tmp_path) / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(BundleError):
            runner.load(tmp_path)


def test_builds_of_before_run_in_the_virtual_machine(folder: Path, lowered: Lowered, tmp_path: Path) -> None:
    """Of before libraries ran by themselves, and of before files were listed."""
    image = tiny_images(PROGRAM.spec, 1)
    expected = runner.load(folder).run(image)[0]
    older.write(lowered, tmp_path)
    np.testing.assert_array_equal(runner.load(tmp_path).run(image)[0], expected)
    data = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**data, "tvm": "0.1"}))
    resign(tmp_path)
    with pytest.raises(BundleError, match=r"apache-tvm==0\.1"):
        runner.load(tmp_path)
    data |= {"schema": 1}
    del data["files"], data["sha256"]
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    np.testing.assert_array_equal(runner.load(tmp_path).run(image)[0], expected)
    data |= {"schema": 2}  # leaving the hashes away is no way around them
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match="was changed since it was written"):
        runner.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"), [('"offset_bytes": 0', '"offset_bytes": 4'), ('"elements": ', '"elements": -')]
)
def test_weights_at_a_wrong_place_are_refused(folder: Path, tmp_path: Path, old: str, new: str) -> None:
    copy(folder, tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    assert old in text
    (tmp_path / MANIFEST).write_text(text.replace(old, new, 1))
    resign(tmp_path)
    with pytest.raises(BundleError, match="puts stem at a wrong place"):
        runner.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("flags", ["avx2", "amx_fp64"], "a CPU with amx_fp64"),
        ("machines", ["riscv64"], "is for riscv64"),
        ("memory", 64, "has memory_bytes = "),
        ("classes", 11, "has classes = 10, model.json says 11"),
    ],
)
def test_a_library_for_another_machine_is_refused(
    folder: Path, tmp_path: Path, key: str, value: object, told: str
) -> None:
    copy(folder, tmp_path)
    data = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**data, key: value}))
    resign(tmp_path)
    with pytest.raises(BundleError, match=told):
        runner.load(tmp_path)


def test_no_linker_and_no_folder_are_clear(lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the C library into .*Not a directory"):
        library.write(lowered, tmp_path / "file")
    (tmp_path / "file").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match="gcc is not installed"):
        library.write(lowered, tmp_path)
    foreign = replace(lowered, isa=isa("neon"))
    with pytest.raises(RuntimeMissingError, match="apt install gcc-aarch64-linux-gnu"):
        library.write(foreign, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listed", [(), ("arm", "x86_64")], ids=["no LLVM", "others only"])
def test_an_llvm_without_the_architecture_is_clear(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: tuple[str, ...]
) -> None:
    monkeypatch.setattr(library, "llvm_architectures", lambda: listed)
    told = r"LLVM cannot compile for aarch64 \(it knows: " + ("arm, x86_64" if listed else "nothing")
    with pytest.raises(RuntimeMissingError, match=told):
        library.write(replace(lowered, isa=isa("neon")), tmp_path)
    assert not list(tmp_path.iterdir())
