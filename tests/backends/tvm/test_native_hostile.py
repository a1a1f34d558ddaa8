"""The C++ runner under the compiler's sanitizers: it frees all it takes, and ends with a code of its own, by no signal.

Cases are whole tables and, from fixed seeds, bytes that are turned, cut out, doubled or exchanged; the digests in
`model.json` are then made to fit, so that what is behind them is reached.
"""

from __future__ import annotations

import json
import platform
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from tests.backends.tvm.native_runner import Native, copied, read, resign, sanitized, written  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
OWN = {1, 2, 15, 16, 18, 19}
PIECES: tuple[bytes, ...] = (
    *(b"0", b"-1", b"1099511627776", b"9" * 30, b"1e5", b"null", b"true", b"[", b"]", b"{", b"}", b'"', b"\\u0000"),
    *(b",", b":", b"", b"\0", b"\xff", b"[" * 5000, b'{"a":' * 5000, b'"' + b"x" * 70000 + b'"'),
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return sanitized(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tiny_program(gated=True, skip=True), isa("avx2"), tmp_path_factory.mktemp("model"))


def assert_own(done: subprocess.CompletedProcess[str], *, allowed: set[int]) -> None:
    lines = [line for line in done.stderr.splitlines() if "WARNING: AddressSanitizer failed to allocate" not in line]
    told = "\n".join(lines)
    assert done.returncode in allowed and "Sanitizer" not in told and "runtime error" not in told, done
    assert done.returncode == 0 or told.startswith("error: "), done


def bent(raw: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to three changes."""
    for _ in range(rng.integers(1, 4)):
        at, end = sorted(rng.integers(0, len(raw) + 1, 2))
        end = min(end, at + 40)
        piece = PIECES[rng.integers(len(PIECES))]
        change = rng.integers(5)
        if change == 0 and at < len(raw):
            raw = raw[:at] + bytes([raw[at] ^ 1 << rng.integers(8)]) + raw[at + 1 :]
        elif change == 1:
            raw = raw[:at] + raw[end:]
        elif change == 2:
            raw = raw[:end] + raw[at:end] + raw[end:]
        else:
            raw = raw[:at] + piece + (raw[at:] if change == 3 else raw[end:])
    return raw


def test_what_it_takes_it_frees(watched: Native, folder: Path, tmp_path: Path) -> None:
    """One image, a plan with a trace, a stream, two threads, a refusal: no leak, nothing out of bounds."""
    pixels = (folder / "image.raw").read_bytes()
    assert read(watched.start(folder, folder / "image.raw", "--json", "--runs", 3))["runs"] == 3
    (tmp_path / "plan").write_text("0 0\n0 inf\n")
    done = watched.start(folder, folder / "image.raw", "--plan", tmp_path / "plan", "--trace")
    assert_own(done, allowed={0})
    assert done.stdout.count("\n") == 3
    streamed = subprocess.run(
        [watched.path, folder, "-"],
        input=(struct.pack("<f", 0.5) + pixels) * 2,
        capture_output=True,
        check=False,
        env=watched.environment,
    )
    assert streamed.returncode == 0 and not streamed.stderr and streamed.stdout.count(b"\n") == 2
    assert_own(watched.start(folder, "--help"), allowed={0})
    assert_own(watched.start(folder, "absent"), allowed={15})


@pytest.mark.parametrize("seed", range(40))
def test_a_bent_manifest_ends_in_one_error_or_changes_nothing(
    watched: Native, folder: Path, tmp_path: Path, seed: int
) -> None:
    path = copied(folder, tmp_path) / "model.json"
    path.write_bytes(bent(path.read_bytes(), np.random.default_rng(seed)))
    resign(tmp_path)
    assert_own(watched.start(tmp_path, tmp_path / "image.raw"), allowed=OWN | {0})


@pytest.mark.parametrize("field", ["height", "width", "classes", "branches", "arena", "memory", "threads", "schema"])
@pytest.mark.parametrize("value", [0, 3, 65, 1 << 31, 1 << 40, 1 << 64])
def test_sizes_that_are_not_the_librarys_are_refused(
    watched: Native, folder: Path, tmp_path: Path, field: str, value: int
) -> None:
    """By the reader, by the machine, or since the library tells others of itself."""
    path = copied(folder, tmp_path) / "model.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, field: value}))
    resign(tmp_path)
    height, width = (value if field == side else 32 for side in ("height", "width"))
    if 0 < height * width <= 32 * 65536:
        (tmp_path / "image.raw").write_bytes(bytes(3 * height * width))
    same = field == "schema" and value == 3
    assert_own(watched.start(tmp_path, tmp_path / "image.raw"), allowed={0} if same else OWN)


@pytest.mark.parametrize("seed", range(15))
def test_bent_plans_and_pictures_end_in_one_error_or_run(
    watched: Native, folder: Path, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    (tmp_path / "plan").write_bytes(bent(b"0 0\n0 1e30\n0 -inf\n0 2.5e-3\n", rng))
    done = watched.start(folder, folder / "image.raw", "--plan", tmp_path / "plan")
    assert_own(done, allowed={0, 15})
    picture = b"P6\n# by hand\n32 32\n255\n"
    (tmp_path / "image.ppm").write_bytes(bent(picture, rng) + (folder / "image.raw").read_bytes())
    assert_own(watched.start(folder, tmp_path / "image.ppm"), allowed={0, 15})
