"""Files made to fill the memory must not: the tests that read them have little."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOM_BYTES = 600 << 20


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What a test may take beyond what the process has; more is a MemoryError, which fails it."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
