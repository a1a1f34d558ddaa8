"""Memory stays within its bound: every path that was measured, and a run under a cap of the bound."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.errors import BoundError
from edgevit.schema.claims import BoundFigures
from edgevit.schema.memory_bound import BoundDetail, CappedRun, PathMemory, check_bound


def check_memory(
    detail: BoundDetail, measured: Sequence[PathMemory] | None, capped: CappedRun | None = None
) -> BoundFigures | None:
    """Hold measured runs, and one under a cap, against the bound; None: nothing was there to measure.

    Raises:
        BoundError: a path is above the bound, none was measured, or the capped run failed.
    """
    result = None if measured is None else check_bound(detail, measured)
    if capped is not None:
        check_capped(capped)
    return result


def check_capped(run: CappedRun) -> CappedRun:
    """Return `run` if it passed.

    Raises:
        BoundError: it did not.
    """
    if not run.passed:
        raise BoundError(
            f"the all-open run failed under an arena capped at {run.cap_bytes} bytes, the memory bound: {run.error}"
        )
    return run
