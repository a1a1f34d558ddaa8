"""What tests share: real data where EDGEVIT_DATA points to it, and one thread per test process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and labelled images."""
    value = os.environ.get("EDGEVIT_DATA")
    if not value:
        pytest.skip("EDGEVIT_DATA is not set: this test needs real weights and images")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"EDGEVIT_DATA is {value}, which is no folder")
    return folder
