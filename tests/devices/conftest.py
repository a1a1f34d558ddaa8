"""One board for all tests of a process, and an ssh client that may log in there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.board import Board


@pytest.fixture(scope="session")
def running() -> Iterator[Board]:
    # pytest's own folders may not be entered by the user that sshd acts for.
    folder = Path(tempfile.mkdtemp(prefix="board-"))
    board = Board(folder / "board")
    yield board
    board.stop()
    shutil.rmtree(folder)


@pytest.fixture
def board(running: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """The board, with a client on PATH that knows it; at the end nothing may be left there."""
    use(running.client(tmp_path / "client"), monkeypatch)
    yield running
    running.assert_clean()


def use(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `client` be where `ssh` is found first."""
    monkeypatch.setenv("PATH", f"{client}{os.pathsep}{os.environ['PATH']}")
