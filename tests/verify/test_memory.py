"""Memory is held against its bound: what was measured, and a run under a cap of it."""

from __future__ import annotations

import pytest

from edgevit.errors import BoundError
from edgevit.schema.memory_bound import BoundDetail, CappedRun, MemoryBound, PathMemory
from edgevit.verify.memory import check_capped, check_memory

BOUND = BoundDetail(
    bound=MemoryBound(
        bound_bytes=100,
        weights_bytes=0,
        activations_bytes=100,
        scratch_bytes=0,
        io_bytes=0,
        arena_bytes=100,
        proven=True,
        covers="everything",
    )
)


def path(peak_bytes: int) -> PathMemory:
    return PathMemory(name="real", effort=0.0, open_branches=1, peak_bytes=peak_bytes, nodes=())


def test_what_was_measured_is_held_against_the_bound() -> None:
    result = check_memory(BOUND, (path(50),))
    assert result is not None and result.paths[0].ratio == 2.0
    with pytest.raises(BoundError, match="peak 101 bytes is above the bound"):
        check_memory(BOUND, (path(50), path(101)))


def test_a_runtime_that_tells_must_have_told_and_one_that_does_not_need_not() -> None:
    assert check_memory(BOUND, None) is None
    with pytest.raises(BoundError, match="no path was measured"):
        check_memory(BOUND, ())


def test_a_run_under_a_cap_must_pass() -> None:
    passed = CappedRun(cap_bytes=100, passed=True, error="")
    assert check_capped(passed) is passed and check_memory(BOUND, None, passed) is None
    failed = CappedRun(cap_bytes=100, passed=False, error="out of room")
    with pytest.raises(BoundError, match="capped at 100 bytes, the memory bound: out of room"):
        check_memory(BOUND, (path(50),), failed)
