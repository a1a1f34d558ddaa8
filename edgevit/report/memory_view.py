"""Memory over one run as the page draws it: the moments, the blocks that they belong to, and the bound above them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from edgevit.schema.measurement import MemoryPoint, MemoryTrace
from edgevit.schema.memory_bound import MemoryBound


@dataclass(frozen=True, kw_only=True)
class MemorySpan:
    """Part of a traced run that belongs to one block of the model ('stem', '0', '1', ..., 'head')."""

    label: str
    begin_ms: float
    end_ms: float


@dataclass(frozen=True, kw_only=True)
class MemoryView:
    """Memory over one all-open run. `limit_bytes`: the bound in the same terms, None if they are not comparable."""

    of: str
    points: tuple[MemoryPoint, ...]
    spans: tuple[MemorySpan, ...]
    peak_bytes: int
    limit_bytes: int | None


def memory_view(bound: MemoryBound, trace: MemoryTrace) -> MemoryView:
    """Return a traced run as the page draws it, under the part of the bound that it can be held against."""
    comparable = trace.of == "runtime" and bound.proven
    return MemoryView(
        of=trace.of,
        points=trace.points,
        spans=_spans(trace.points) if trace.of == "runtime" else (),
        peak_bytes=trace.peak_bytes,
        limit_bytes=(bound.arena_bytes or bound.bound_bytes) if comparable else None,
    )


def _spans(points: Sequence[MemoryPoint]) -> tuple[MemorySpan, ...]:
    """Return consecutive points of one block.

    A node that the runtime renamed stays in the block before it, and so do the gates' states, which are gathered late.
    """
    labelled: list[tuple[str, MemoryPoint]] = []
    label, reached = "stem", -1.0
    for point in points:
        found = re.match(r"b(\d+)_", point.where)
        head = point.where.startswith(("head", "logits", "gates"))
        rank = math.inf if head else float(found[1]) if found else reached
        if rank > reached:
            label, reached = ("head" if head else str(int(rank))), rank
        labelled.append((label, point))
    spans, begin = [], 0.0
    for name, group in groupby(labelled, key=lambda pair: pair[0]):
        end = max(point.time_ms for _, point in group)
        spans.append(MemorySpan(label=name, begin_ms=begin, end_ms=end))
        begin = end
    return tuple(spans)
