"""Times per branch from OpenVINO's counters: one row per `If`, and no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.measure.branch_times import WARM_UP_RUNS, Trace, inputs_of, times_by_branch, traced_efforts


def trace(request: Any, images: NDArray[np.uint8], *, branches: Sequence[str], gated: Sequence[str]) -> Trace:
    """Read the counters of a request, which are means since loading: totals before and after a path are subtracted."""
    done, takes = 0, {name for each in request.model_inputs for name in each.names}

    def totals_after(effort: float, chosen: NDArray[np.uint8]) -> list[tuple[str, float]]:
        nonlocal done
        for image in chosen:
            request.infer(inputs_of(image, effort, takes))
        done += len(chosen)
        return [(row.node_name, 1000 * done * row.real_time.total_seconds()) for row in request.profiling_info]

    found, whole = [], []
    for effort in traced_efforts(gated):
        before = totals_after(effort, images[:1].repeat(WARM_UP_RUNS, axis=0))
        after = totals_after(effort, images)
        rows = [(name, (b - a) / len(images)) for (name, a), (_, b) in zip(before, after, strict=True)]
        found.append(times_by_branch(rows, branches, gated))
        whole.append(sum(time for _, time in rows))
    return Trace(
        open_ms=found[0],
        skipped_ms={name: time for name, time in found[-1].items() if name in gated},
        other_ms=whole[0] - sum(found[0].values()),
        source=f"OpenVINO counters, mean of {len(images)} runs",
        memory=None,
    )
