from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.fuzz.mutate import Mutator
from tests.pictures import class_folders, packed

MOST = 1 << 20


def flipped(data: bytes, most: int) -> bytes:
    """What stands for libFuzzer's own changes: the last byte is another one."""
    return (data[:-1] + bytes([data[-1] ^ 1]))[:most] if data else b"\1"


def changed(data: bytes) -> list[bytes]:
    """What becomes of data but for changes of plain bytes."""
    mutator = Mutator(flipped)
    made = [mutator(data, MOST, seed) for seed in range(200)]
    return [one for one in made if one != flipped(data, MOST)]


def test_the_same_seed_makes_the_same_change() -> None:
    data = json.dumps({"a": [1, 2, {"b": None}], "c": "text"}).encode()
    assert [Mutator(flipped)(data, MOST, seed) for seed in range(50)] == [
        Mutator(flipped)(data, MOST, seed) for seed in range(50)
    ]


def test_json_stays_json() -> None:
    made = changed(json.dumps({"a": [1, 2, {"b": None}], "c": "text"}).encode())
    assert len({*made}) > 40
    for one in made:
        if b"1e999" not in one and len(one) < 1000:  # nesting and digits beyond what Python reads
            json.loads(one)


def test_an_archive_stays_one_with_checksums_that_fit(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", ("cat", "dog"), each=1)
    zipped, tarred = (packed(folder, kind).read_bytes() for kind in ("zip", "tar"))
    assert len(made := changed(zipped)) > 50
    for one in made:
        with zipfile.ZipFile(io.BytesIO(one)) as archive:
            assert archive.testzip() is None
    assert len(made := changed(tarred)) > 50
    read = 0
    for one in made:
        try:
            with tarfile.open(fileobj=io.BytesIO(one)) as tar:
                read += len(tar.getmembers()) > 0
        except (tarfile.TarError, ValueError, OverflowError):  # a size or a type that cannot be
            pass
    assert read > len(made) / 2


def test_headers_of_arrays_keep_their_length() -> None:
    raw = save({"a": np.ones(3, np.float32)})
    for one in changed(raw):
        assert int.from_bytes(one[:8], "little") <= len(one) - 8
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3, np.float32))
    made = changed(buffer.getvalue())
    assert {len(one) for one in made} == {len(buffer.getvalue())}
    assert any(b"|O" in one for one in made) and any(b"(-1,)" in one for one in made)


@pytest.mark.parametrize("data", [b"", b"PK", b"{", b"\x93NUMPY", bytes(257) + b"ustar", b"a = ", b"x" * 8 + b"{"])
def test_what_only_begins_like_a_form_is_changed_too(data: bytes) -> None:
    for seed in range(30):
        assert isinstance(Mutator(flipped)(data, MOST, seed), bytes)


def test_what_became_too_long_is_changed_as_bytes() -> None:
    data = json.dumps(list(range(100))).encode()
    assert all(len(Mutator(flipped)(data, len(data), seed)) <= len(data) for seed in range(200))
