"""A library is read without running it, whatever architecture it is for; what is damaged is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import BundleError, RuntimeMissingError
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.inspect.shipped import EMBEDDED, read  # noqa: E402
from edgevit.backends.tvm.run.runner import LIBRARY  # noqa: E402
from tests.backends.tvm import older  # noqa: E402

PROGRAM = tiny_program(gated=True, depth=1)


@pytest.fixture(scope="module", params=["avx2", "neon"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    try:
        library.write(lower(PROGRAM, isa(request.param)), folder)
    except RuntimeMissingError as error:
        unavailable(str(error))
    return folder / LIBRARY


def test_a_library_of_its_own_tells_what_it_asks_for(path: Path) -> None:
    shipped = read(path)
    assert not shipped.text and {"edgevit_model", "model_run"} < shipped.symbols
    assert shipped.asked <= {"memcpy", "memset", "memmove"}


@pytest.mark.parametrize("name", ["avx2", "neon"])
def test_bytecode_and_symbols_of_older_builds_are_found(name: str, tmp_path: Path) -> None:
    try:
        shipped = read(older.write(lower(PROGRAM, isa(name)), tmp_path) / LIBRARY)
    except RuntimeMissingError as error:
        unavailable(str(error))
    assert "@main" in shipped.text and "run_b00_mhsa" in shipped.text
    assert EMBEDDED in shipped.symbols and not shipped.has_kernel("main")
    kernels = {name for name in shipped.symbols if name.startswith("__tvm_ffi_") and name != EMBEDDED}
    assert len(kernels) > 5 and all(shipped.has_kernel(name.removeprefix("__tvm_ffi_")) for name in kernels)


def test_a_library_of_somebody_else_is_refused(tmp_path: Path) -> None:
    source, other = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int other(void) { return 1; }\n")
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c", str(source), "-o", str(other)], check=True)
    with pytest.raises(BundleError, match=rf"is no library of a model: '{EMBEDDED}'"):
        read(other)
    for content in (b"", b"no library", b"\x7fELF\x02\x01\x01" + bytes(40)):
        other.write_bytes(content)
        with pytest.raises(BundleError, match="is no library of a model"):
            read(other)
    with pytest.raises(BundleError, match="No such file"):
        read(tmp_path / "absent.so")


def test_any_damage_is_one_error_or_none(path: Path, tmp_path: Path) -> None:
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = tmp_path / LIBRARY
    for _ in range(60):
        content = bytearray(raw)
        for place in rng.integers(0, len(raw), 20):
            content[place] = rng.integers(0, 256)
        damaged.write_bytes(bytes(content[: rng.integers(len(raw) // 2, len(raw))]))
        with pytest.raises(BundleError):
            read(damaged)
