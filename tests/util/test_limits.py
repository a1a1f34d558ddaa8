from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from edgevit.util import limits
from edgevit.util.limits import Limit, LimitError, Range, open_regular, read_regular

SMALL = Limit(of="a test", value=10, unit="bytes")
DOCS = Path(__file__).parents[2] / "docs" / "limits.md"


def test_a_file_up_to_its_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for size in (0, 1, 10):
        path.write_bytes(b"x" * size)
        assert read_regular(path, SMALL) == b"x" * size
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", SMALL) == b"x" * 10
    path.write_bytes(b"x" * 11)
    with pytest.raises(LimitError, match=r"it has 11 bytes, allowed for a test: 10 bytes"):
        read_regular(path, SMALL)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitError, match="1099511627776 bytes"), open_regular(tmp_path / "f", SMALL):
        pytest.fail("it was opened")


@pytest.mark.parametrize(("target", "kind"), [("/dev/zero", "a device"), (".", "a folder")])
def test_devices_and_folders_are_refused_also_by_a_link(target: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(LimitError, match=f"it is {kind}, and only regular files"):
        read_regular(tmp_path / "link", SMALL)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LimitError, match="it is a pipe"):
        read_regular(tmp_path / "pipe", SMALL)


def test_a_pipe_that_took_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    status = (tmp_path / "f").stat()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "stat", lambda _: status)
    with pytest.raises(LimitError, match="it is a pipe"):
        read_regular(tmp_path / "pipe", SMALL)


def test_a_socket_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s")
        with pytest.raises(LimitError, match="it is a socket"):
            read_regular(Path(folder) / "s", SMALL)


def test_a_file_that_says_it_is_empty_is_still_limited() -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("there is no /proc here")
    assert path.stat().st_size == 0
    with pytest.raises(LimitError, match="more than 10 bytes"):
        read_regular(path, SMALL)


def test_the_documentation_shows_every_limit() -> None:
    known = [v for v in vars(limits).values() if isinstance(v, Limit | Range)]
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {limit.of} | {limit} |" for limit in known]
