"""The memory bound as data, what a run measured, and the check of one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.errors import BoundError
from edgevit.schema.claims import BoundFigures, PathCheck


@dataclass(frozen=True, kw_only=True)
class MemoryBound:
    """An upper bound on the memory that a runtime holds for a model, over every gate path, in bytes.

    Attributes:
        bound_bytes: the sum of weights, activations, scratch, io and fragmentation.
        weights_bytes: constants as the runtime holds them while it runs, packed copies included.
        activations_bytes: the worst path's live tensors, the branch bodies' included.
        scratch_bytes: what is in use beyond a run's worst moment: the copies that weights are packed from at load.
        io_bytes: the model's inputs and outputs; the inputs belong to the caller.
        fragmentation_bytes: gaps between live tensors that an arena of the bound's size can have on any gate path.
        arena_bytes: the part of the bound that lives in the runtime's arena, gaps included: the cap it can run under. 0
            where there is no arena that could be capped.
        measured_peak_bytes: the largest peak over the paths tried at build time, to be compared with `arena_bytes`
            (None: it was not measured, or is not the same twice).
        proven: the bound is one on what the runtime takes for a run; False: it cannot be bounded soundly.
        covers: what the figures are a bound of, in one sentence.
    """

    bound_bytes: int
    weights_bytes: int
    activations_bytes: int
    scratch_bytes: int
    io_bytes: int
    fragmentation_bytes: int = 0
    arena_bytes: int = 0
    measured_peak_bytes: int | None = None
    proven: bool
    covers: str


@dataclass(frozen=True, kw_only=True)
class BoundDetail:
    """A memory bound node by node, as runs are held against it; only `bound` is written down.

    Attributes:
        bound: the figures.
        arena_weights_bytes: the part of the weights that lives in the runtime's arena; 0 where there is none.
        main_frame_bytes: peak of the main graph's own tensors.
        branches: (name of the branch, peak of its open body, peak of its skipped body), one per gate.
        timeline: (node, bytes live while it runs), the all-open path in order of execution; where the runtime has an
            arena this is what it has in use, weights included.
        skipped: the same for the nodes of the skipped bodies.
    """

    bound: MemoryBound
    arena_weights_bytes: int = 0
    main_frame_bytes: int = 0
    branches: tuple[tuple[str, int, int], ...] = ()
    timeline: tuple[tuple[str, int], ...] = ()
    skipped: tuple[tuple[str, int], ...] = ()

    @property
    def in_use_bytes(self) -> int:
        """Return what the arena can have in use at once: `arena_bytes` without the gaps."""
        return self.bound.arena_bytes - self.bound.fragmentation_bytes


@dataclass(frozen=True, kw_only=True)
class PathMemory:
    """What one run showed.

    Attributes:
        name: the path, `all_open`, `all_skipped`, ...
        effort: the input `effort` of the run.
        open_branches: how many branches ran.
        peak_bytes: most that the arena had in use at once during this run; the first one's includes loading.
        nodes: (node, bytes in use when its kernel had finished), in order of execution.
    """

    name: str
    effort: float
    open_branches: int
    peak_bytes: int
    nodes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class CappedRun:
    """An all-open run under an arena that may hold `cap_bytes`; `error` says what the runtime said if it failed."""

    cap_bytes: int
    passed: bool
    error: str


def check_bound(detail: BoundDetail, measured: Sequence[PathMemory]) -> BoundFigures:
    """Hold every measured path against the bound, and every node of it against the bound's figure for that node.

    Raises:
        BoundError: no path was measured, a peak is above the bound, a node had more in use than the bound says for
            it, or a node ran that the bound does not know.
    """
    if not measured:
        raise BoundError("no path was measured, so the memory bound is not checked; measure at least the all-open path")
    faults = [fault for path in measured for fault in _faults(detail, path)]
    if faults:
        shown = "\n".join(f"  - {fault}" for fault in faults[:5])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BoundError(
            f"the memory bound of {detail.in_use_bytes} bytes does not hold:\n{shown}{more}\n"
            "the bound's rules do not describe this runtime; do not ship its figure"
        )
    checks = tuple(
        PathCheck(
            name=path.name,
            open_branches=path.open_branches,
            peak_bytes=path.peak_bytes,
            ratio=detail.bound.arena_bytes / path.peak_bytes,
        )
        for path in measured
    )
    return BoundFigures(bound_bytes=detail.bound.arena_bytes, paths=checks)


def _faults(detail: BoundDetail, path: PathMemory) -> list[str]:
    faults = []
    if path.peak_bytes > detail.in_use_bytes:
        faults.append(f"path {path.name}: peak {path.peak_bytes} bytes is above the bound")
    allowed = dict((*detail.timeline, *detail.skipped))
    for node, in_use in path.nodes:
        if node not in allowed:
            faults.append(f"path {path.name}: {node} ran, which the bound does not know")
        elif in_use > allowed[node]:
            faults.append(f"path {path.name}: {in_use} bytes in use after {node}, the bound says {allowed[node]}")
    return faults
