"""What a trace of some runs says: the time of every branch, and memory over an all-open run."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.schema.measurement import MemoryTrace


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Times in ms of every branch when all run (`open_ms`) and when all gated ones are skipped (`skipped_ms`).

    `other_ms` is the rest of an all-open run: stem, gates, head, and the runtime itself.
    """

    open_ms: dict[str, float]
    skipped_ms: dict[str, float]
    other_ms: float
    source: str
    memory: MemoryTrace | None
