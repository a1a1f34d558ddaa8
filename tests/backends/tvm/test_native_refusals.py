"""What the C++ runner refuses, with one error and an exit code of its own, and what it checks before it runs."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import BundleError
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import native  # noqa: E402
from edgevit.backends.tvm.run import runner  # noqa: E402
from tests.backends.tvm.native_runner import WARNINGS, Native, copied, here, resign, written  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
PROGRAM = tiny_program(gated=True, skip=True)


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return here(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(PROGRAM, isa("avx2"), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("plan", "cpus", "code", "told"),
    [
        ("0 1\nfirst 0\n", "0", 15, "is no plan: line 2 must be"),
        ("0\n", "0", 15, "is no plan: line 1"),
        ("0 0 0\n", "0", 15, "is no plan: line 1"),
        ("0 0\n\n", "0", 15, "is no plan: line 2"),
        ("", "0", 15, "is no plan: it has no line"),
        ("7 0\n", "0", 15, "has no image 7, which line 1 of"),
        ("-1 0\n", "0", 15, "is no plan"),
        ("1.5 0\n", "0", 15, "is no plan"),
        # Times 3072 these are 0 in 64 bits, or do not fit.
        ("18014398509481984 0\n", "0", 15, "has no image 18014398509481984"),
        ("99999999999999999999 0\n", "0", 15, "is no plan"),
        ("0 nan\n", "0", 15, "is no plan"),
        ("0 1x\n", "0", 15, "is no plan"),
        ("0 1e99\n", "0", 15, "is no plan"),
        ("0 0x10\n", "0", 15, "is no plan"),
        (None, "0", 15, "cannot read"),
        ("0 0\n", "0-1", 2, "numbers with commas between them, got 0-1"),
        ("0 0\n", "0,", 2, "numbers with commas between them, got 0,"),
        ("0 0\n", " 0", 2, "numbers with commas between them"),
        ("0 0\n", "1000", 2, "may not use CPU 1000"),
        ("0 0\n", "0,1000", 2, "may not use CPU 1000"),
    ],
)
def test_wrong_plans_are_refused(
    x86: Native, folder: Path, tmp_path: Path, plan: str | None, cpus: str, code: int, told: str
) -> None:
    if plan is not None:
        (tmp_path / "plan").write_text(plan)
    done = x86.start(folder, folder / "image.raw", "--plan", tmp_path / "plan", "--cpus", cpus)
    assert done.returncode == code and told in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.raw", None, "cannot read"),
        ("short.raw", bytes(3071), "has 3071 bytes; the model takes uint8 RGB, 32 x 32: 3072 bytes"),
        ("float.raw", bytes(4 * 3072), "is this float32?"),
        ("empty.raw", b"", "has 0 bytes"),
        ("small.ppm", b"P6 16 16 255 " + bytes(768), "takes an image of 32 x 32, "),
        ("deep.ppm", b"P6 32 32 65535 " + bytes(6144), "values up to 65535"),
        ("cut.ppm", b"P6 32 32 255 " + bytes(3000), "3072 bytes behind the header"),
        ("text.ppm", b"P3 32 32 255 1 2 3", "no"),
        ("header.ppm", b"P6 32 # no end", "damaged PPM"),
        ("digits.ppm", b"P6 32 32 255" + b"x" * 3072, "damaged PPM"),
        ("comment.ppm", b"P6 #" + b"x" * 5000 + b"\n32 32 255 " + bytes(3072), "damaged PPM"),
    ],
)
def test_bad_images_are_refused(
    x86: Native, folder: Path, tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = x86.start(folder, tmp_path / name)
    assert done.returncode == 15 and told in done.stderr and not done.stdout


def limited(native: Native) -> Native:
    """In an address space that holds no 3 GB."""
    return replace(native, before=("prlimit", f"--as={1 << 30}"))


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_large(path: Path) -> None:
    os.truncate(path, 3 << 30)  # nothing of it is on the disk


@pytest.mark.parametrize(
    ("become", "told"),
    [
        (become_folder, "is a folder"),
        (become_device, "is no regular file"),
        (become_pipe, "is no regular file"),
        (become_large, "has 3221225472 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["model.json", "model.so", "model.weights", "image.raw", "plan"])
def test_only_regular_files_of_the_right_size_are_read(
    x86: Native, folder: Path, tmp_path: Path, name: str, become: Callable[[Path], None], told: str
) -> None:
    (copied(folder, tmp_path) / "plan").write_text("0 0\n")
    become(tmp_path / name)
    options = ("--plan", tmp_path / "plan") if name == "plan" else ()
    done = limited(x86).start(tmp_path, tmp_path / "image.raw", *options)
    assert done.returncode == (19 if name.startswith("model") else 15), done
    assert told in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "usage"),
        (("a",), "usage"),
        (("a", "b", "--effort"), "--effort needs a value"),
        (("a", "b", "--effort", "nan"), "got nan"),
        (("a", "b", "--effort", "1x"), "got 1x"),
        (("a", "b", "--effort", " 1"), "got  1"),
        (("a", "b", "--effort", "1e99"), "got 1e99"),
        (("a", "b", "--effort", "0x1"), "got 0x1"),
        (("a", "b", "--effort", ""), "--effort must be a number"),
        (("a", "b", "--runs", "0"), "from 1 to 1000000, got 0"),
        (("a", "b", "--runs", "-1"), "got -1"),
        (("a", "b", "--runs", "+1"), "got +1"),
        (("a", "b", "--runs", "1e3"), "got 1e3"),
        (("a", "b", "--top", "2.5"), "got 2.5"),
        (("a", "b", "--top", "1 "), "got 1 "),
        (("a", "b", "--threads", "18446744073709551617"), "got 18446744073709551617"),
        (("a", "b", "--cpus", "0,-1"), "got 0,-1"),
        (("a", "b", "--cpus", "18446744073709551616"), "numbers with commas"),
        (("a", "-", "--runs", "2"), "--runs is for one image"),
        (("a", "b", "--plan", "c", "--effort", "1"), "--effort is for one image"),
        (("a", "-", "--plan", "c"), "--plan needs a file"),
        (("a", "b", "--speed", "9"), "unknown option --speed"),
    ],
)
def test_wrong_usage_is_refused(x86: Native, arguments: tuple[str, ...], told: str) -> None:
    done = x86.start(*arguments)
    assert done.returncode == 2 and told in done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("model.json", None, None, "cannot read"),
        ("model.json", None, b"{", "is not what edgevit writes"),
        ("model.json", b"\n}\n", b"\n} more", "more after its end"),
        ("model.json", b'"classes": 10', b'"classes": 10, "classes": 10', "classes twice"),
        ("model.json", b'"classes": 10', b'"classes": -10', "no whole number"),
        ("model.json", b'"classes": 10', b'"classes": 0', "has classes = 0"),
        ("model.json", b'"classes": 10', b'"classes": "10"', "of another type"),
        ("model.json", b'"classes": 10', b'"classes": 99999999999999999999', "too large a number"),
        ("model.json", b'"classes": 10', b'"classes": 10.5', "no '}'"),
        ("model.json", b'"threads": 1', b'"threads": 300', "has threads = 300, allowed: 1 to 64"),
        ("model.json", b'"height": 32', b'"height": 1000000', "has height = 1000000, allowed: 1 to 65536"),
        ("model.json", b'"stem"', b'"st\xc2\x9bm"', "no character of ASCII"),
        ("model.json", b'"path": "model.so"', b'"path": "other.so"', "model.json lists no model.so"),
        ("model.json", b'"sha256": "', b'"sha256": "x', "sha256 that is no SHA-256"),
        ("model.json", b'"classes": 10,', b"", "has no field classes"),
        ("model.json", b'"classes": 10', b'"classes": 10, "colour": 1', "unknown field colour"),
        ("model.json", b'"schema": 3', b'"schema": 99', "schema 99"),
        ("model.json", b'"offset_bytes": 0', b'"offset_bytes": 4', "do not follow each other"),
        ("model.json", b'"x86_64",', b'"riscv64",', "is for riscv64"),
        ("model.json", b'"fma"', b'"amx_fp64"', "a CPU with amx_fp64"),
        ("model.json", b'"memory": ', b'"memory": 9', "has memory = "),
        ("model.json", b'"memory": ', b'"arena_": ', "unknown field arena_"),
        ("model.weights", None, None, "cannot read"),
        ("model.weights", None, b"1234", "has 4 bytes, its weights take"),
        ("model.so", None, None, "cannot read"),
        ("model.so", None, b"no library", "is not a shared library"),
        ("model.so", None, b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\3\0\xb7\0" + bytes(99), "another architecture"),
        ("model.so", None, b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\3\0\x3e\0" + bytes(99), "cannot load"),
    ],
)
def test_damaged_models_are_refused(
    x86: Native, folder: Path, tmp_path: Path, file: str, old: bytes | None, new: bytes | None, told: str
) -> None:
    path = copied(folder, tmp_path) / file
    if new is None:
        path.unlink()
    else:
        content = path.read_bytes()
        assert old is None or old in content
        path.write_bytes(content.replace(old, new, 1) if old is not None else new)
    if (tmp_path / "model.json").is_file():
        resign(tmp_path)
    done = x86.start(tmp_path, tmp_path / "image.raw")
    assert done.returncode == 19 and told in done.stderr and not done.stdout


def test_its_sha256_is_the_standards_at_every_length_of_a_block(tmp_path: Path) -> None:
    """Whole and in parts of many sizes, against Python's; the last two are the standard's own examples."""
    source = tmp_path / "main.cc"
    source.write_text(
        f'''#include "{native.SOURCE.with_name("sha256.h")}"
        #include <cstdio>
        int main() {{
          std::string text(200, 'a');
          for (size_t size = 0; size < text.size(); ++size) {{
            edgevit::Sha256 whole, parts;
            whole.add(text.data(), size);
            for (size_t at = 0, step = 1; at < size; at += step, step = 1 + step * 5 % 71)
              parts.add(text.data() + at, std::min(step, size - at));
            std::printf("%s %s\\n", whole.hex().c_str(), parts.hex().c_str());
          }}
          for (const char* known : {{"abc", ""}}) {{
            edgevit::Sha256 hash;
            hash.add(known, std::strlen(known));
            std::puts(hash.hex().c_str());
          }}
        }}'''
    )
    subprocess.run(["g++", "-std=c++17", *WARNINGS, source, "-o", tmp_path / "main"], check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    *lines, abc, empty = done.stdout.splitlines()
    assert abc == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert empty == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert lines == [" ".join([hashlib.sha256(b"a" * size).hexdigest()] * 2) for size in range(200)]


@pytest.mark.parametrize("name", ["model.so", "model.weights", "model.json"])
def test_what_was_changed_is_neither_mapped_nor_loaded(x86: Native, folder: Path, tmp_path: Path, name: str) -> None:
    """Cut short, longer, emptied, filled with zeros, with one bit turned anywhere: one error, and no signal."""
    raw, rng = (copied(folder, tmp_path) / name).read_bytes(), np.random.default_rng(0)
    changed = [raw[: len(raw) // 2], raw[:-1], raw + b"\n", b"", bytes(len(raw)), raw[:100]]
    for place in rng.integers(0, 8 * len(raw), 33):
        turned = bytearray(raw)
        turned[place // 8] ^= 1 << place % 8
        changed.append(bytes(turned))
    for content in changed:
        (tmp_path / name).write_bytes(content)
        done = x86.start(tmp_path, tmp_path / "image.raw")
        assert done.returncode == 19 and done.stderr.startswith("error: ") and not done.stdout, done
        with pytest.raises(BundleError):
            runner.load(tmp_path)


def test_nothing_of_a_library_runs_before_the_checks(x86: Native, folder: Path, tmp_path: Path) -> None:
    """A library that ends the process as soon as it is loaded: seen when checks pass, not when one of them fails."""
    copied(folder, tmp_path)
    source = tmp_path / "exit.cc"
    source.write_text("#include <unistd.h>\n__attribute__((constructor)) void loaded() { _exit(77); }\n")
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "model.so")], check=True)
    assert x86.start(tmp_path, tmp_path / "image.raw").returncode == 19
    resign(tmp_path)
    assert x86.start(tmp_path, tmp_path / "image.raw").returncode == 77
    (tmp_path / "image.raw").write_bytes(b"")
    assert x86.start(tmp_path, tmp_path / "image.raw").returncode == 15
    (tmp_path / "model.json").write_text((tmp_path / "model.json").read_text().replace('"fma"', '"amx_fp64"'))
    assert x86.start(tmp_path, tmp_path / "image.raw").returncode == 19
