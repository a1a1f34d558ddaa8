"""What a trace of some runs says: the time of every branch, and memory over an all-open run."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.measurement import MemoryTrace

WARM_UP_RUNS = 3
REST = ("stem/", "merge.", "head", "logits", "gates", "tokens")  # how the names of nodes begin that are of no branch


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Times in ms of every branch when all run (`open_ms`) and when all gated ones are skipped (`skipped_ms`).

    `other_ms` is the rest of an all-open run: stem, gates, points where tokens merge, head, and the runtime itself.
    """

    open_ms: dict[str, float]
    skipped_ms: dict[str, float]
    other_ms: float
    source: str
    memory: MemoryTrace | None


def traced_efforts(gated: Sequence[str]) -> tuple[float, ...]:
    """Return the efforts that a traced process runs every image with: all-open, and with gates all-skipped."""
    return (EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED) if gated else (EFFORT_ALL_OPEN,)


def traced(images: int, gated: Sequence[str]) -> list[tuple[int, float]]:
    """Return (image, effort) of every run of a traced process, those that warm it up included."""
    return [(index, effort) for index in (*[0] * WARM_UP_RUNS, *range(images)) for effort in traced_efforts(gated)]


def inputs_of(image: NDArray[np.uint8], effort: float, names: Collection[str]) -> dict[str, Any]:
    """Return what an ONNX graph with inputs of these `names` takes for an image uint8 `[height, width, 3]`.

    Numbers of tokens may follow `effort` where no branch has a gate.
    """
    feeds: dict[str, Any] = {"image": np.ascontiguousarray(image[None])}
    return {**feeds, "effort": np.array(effort, dtype=np.float32)} if "effort" in names else feeds


def times_by_branch(
    rows: Sequence[tuple[str, float]], branches: Sequence[str], gated: Sequence[str]
) -> dict[str, float]:
    """Return the time per branch from (node, time) rows of a graph in execution order.

    A gated branch is its `If`, named `<branch>/y`. Of an ungated one all nodes count that carry its name; runtimes
    rename what they fuse, and such a node belongs to the next one with a name.
    """
    times: dict[str, float] = {}
    pending = 0.0
    for node, time in rows:
        owner = next((name for name in branches if node.startswith((f"{name}/", f"{name}."))), None)
        known = owner is not None or node.startswith(REST)
        if owner is not None and owner not in gated:
            times[owner] = times.get(owner, 0.0) + pending + time
        elif owner is not None and node == f"{owner}/y":
            times[owner] = time
        pending = 0.0 if known else pending + time
    return times


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of every name of the first run over the runs that have it."""
    return {name: statistics.median(run[name] for run in runs if name in run) for name in runs[0]}
