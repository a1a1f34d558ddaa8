"""Skipped is skipped: a closed gate saves the work of its branch.

Two witnesses. The runtime's own list of executed nodes, where it gives one: no node of a closed branch may be on it.
And process CPU time of all-skipped against all-open runs, interleaved, against what their MACs say, or, for models so
small that what is paid on every path outweighs these, against the same graph with nothing in its branches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgevit.errors import SkipError
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import cheapest_left
from edgevit.schema.claims import PathNodes, SkipNodesResult
from edgevit.schema.points import effort_text

# What all-skipped runs may keep of the time that empty branches save, and how far two medians of one thing lie apart.
KEPT, NOISE = 0.25, 0.05
Trace = Callable[[np.ndarray, float], tuple[Sequence[tuple[str, str]], np.ndarray]]
MATRIX_OPS = ("Gemm", "MatMul")
ALL_OPEN, ALL_SKIPPED = 1e9, -1e9
# What runs on every path: the decision, the If itself, and what stands in for a branch that does not run.
ALWAYS = re.compile(r"[^./]+(\.gate/.*|/y|/kept.*|/skipped)")


class Runner(Protocol):
    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class SkipTimeResult:
    """Median process CPU time per run; `ratio` = all-skipped / all-open, `expected` the same of their MACs."""

    all_open_ms: float
    all_skipped_ms: float
    ratio: float
    expected: float
    limit: float
    runs: int

    @property
    def summary(self) -> str:
        return (
            f"all skipped costs {self.ratio:.1%} of all open (MACs say {self.expected:.1%}, limit {self.limit:.1%}, "
            f"median CPU time of {self.runs} runs each)"
        )


@dataclass(frozen=True, kw_only=True)
class SkipFloorResult:
    """Median process CPU time per run of all open, of all skipped, and of all skipped where branches are empty."""

    all_open_ms: float
    all_skipped_ms: float
    empty_ms: float
    limit_ms: float
    runs: int

    @property
    def summary(self) -> str:
        return (
            f"all skipped takes {self.all_skipped_ms:.3g} ms, all open {self.all_open_ms:.3g} ms and the same graph "
            f"with empty branches {self.empty_ms:.3g} ms (limit {self.limit_ms:.3g} ms, median CPU time of {self.runs} "
            "runs each)"
        )


def check_skip_nodes(
    spec: ProgramSpec, trace: Trace, images: np.ndarray, *, efforts: Sequence[float] = (ALL_OPEN, ALL_SKIPPED, 0.0)
) -> SkipNodesResult:
    """Hold the nodes that a runtime executes against its gates.

    Args:
        spec: the Program that runs.
        trace: (image, effort) to (executed nodes as (name, operator), gates `[branches]`). A node's name begins with
            its branch's.
        images: uint8 `[n, height, width, 3]`; every effort is tried on each.
        efforts: paths to try.

    Raises:
        SkipError: a node of a closed branch ran, one of an open branch did not, or a kernel belongs to nothing.
    """
    paths = []
    for image in images:
        for effort in efforts:
            nodes, gates = trace(image[None], effort)
            matrix = [name for name, kind in nodes if any(op in kind for op in MATRIX_OPS)]
            where = f"effort {effort_text(effort)}, gates {''.join(map(str, gates))}"
            _check_closed(spec, nodes, gates, where)
            _check_matrix(spec, matrix, gates, where)
            paths.append(PathNodes(effort=effort, open=int(gates.sum()), nodes=len(nodes), matrix_kernels=len(matrix)))
    return SkipNodesResult(paths=tuple(paths))


def check_skip_time(
    spec: ProgramSpec, runner: Runner, images: np.ndarray, *, margin: float = 0.15, runs: int = 15, looks: int = 3
) -> SkipTimeResult:
    """Hold the CPU time of all-skipped against all-open runs, taken in turns so that both meet the same machine.

    What misses the limit is measured again, over more runs, before it is refused; `looks` of them in all, at most 3.

    `margin` is added to the share that MACs say: norms, gates and copies cost time but no MACs, and int8 makes the
    branches, but not them, cheaper.

    Raises:
        SkipError: the ratio is above the expected share plus `margin`.
    """
    result = _time_paths(spec, runner, images, margin=margin, runs=runs)
    # A busy machine can spoil a few short runs, not more and more of them.
    for more in (3, 9)[: looks - 1]:
        if result.ratio > result.limit:
            result = _time_paths(spec, runner, images, margin=margin, runs=more * runs)
    if result.ratio > result.limit:
        raise SkipError(
            f"{result.summary}: all open {result.all_open_ms:.3g} ms, all skipped {result.all_skipped_ms:.3g} ms; a "
            "closed gate does not save the work of its branch"
        )
    return result


def check_skip_floor(
    runner: Runner, empty: Runner, images: np.ndarray, *, runs: int = 45, looks: int = 3
) -> SkipFloorResult:
    """Hold the CPU time of all-skipped runs against those of `empty`, the same graph with nothing in its branches.

    A quarter of the time that empty branches save may be kept: branches that run lie between in the caches.

    Raises:
        SkipError: more is kept in each of `looks` looks.
    """
    # Both follow a large run, which takes the caches, and a path of their own with other numbers of tokens, for which a
    # runtime prepares its kernels anew.
    turns = ((runner, ALL_OPEN), (empty, ALL_OPEN), (runner, ALL_SKIPPED), (runner, ALL_OPEN), (empty, ALL_SKIPPED))
    for _ in range(looks):
        opened, _, skipped, _, floor = _medians(turns, images, runs)
        result = SkipFloorResult(
            all_open_ms=opened,
            all_skipped_ms=skipped,
            empty_ms=floor,
            limit_ms=floor + max(KEPT * (opened - floor), NOISE * floor),
            runs=runs,
        )
        if skipped <= result.limit_ms:
            return result
    raise SkipError(f"{result.summary}; a closed gate does not save the work of its branch")


def _time_paths(spec: ProgramSpec, runner: Runner, images: np.ndarray, *, margin: float, runs: int) -> SkipTimeResult:
    all_open, all_skipped = _medians(((runner, ALL_OPEN), (runner, ALL_SKIPPED)), images, runs)
    expected = skipped_macs(spec) / total_macs(spec)
    return SkipTimeResult(
        all_open_ms=all_open,
        all_skipped_ms=all_skipped,
        ratio=all_skipped / max(all_open, 1e-9),
        expected=expected,
        limit=expected + margin,
        runs=runs,
    )


def _medians(candidates: Sequence[tuple[Runner, float]], images: np.ndarray, runs: int) -> list[float]:
    """Return the median process CPU time of each (runner, effort) in ms, taken in turns."""
    samples: list[list[float]] = [[] for _ in candidates]
    for index in range(runs + 1):
        image = images[index % len(images)][None]
        for (runner, effort), times in zip(candidates, samples, strict=True):
            start = time.process_time()
            runner.run(image, effort)
            times.append((time.process_time() - start) * 1e3)
    # The first round warms up.
    return [float(np.median(times[1:])) for times in samples]


def skipped_macs(spec: ProgramSpec) -> int:
    """Return MACs of the path on which every gated branch is skipped, and as many tokens merge as may be."""
    return run_macs(spec, [branch.gate is None for branch in spec.branches], cheapest_left(spec))


def _check_closed(spec: ProgramSpec, nodes: Sequence[tuple[str, str]], gates: np.ndarray, where: str) -> None:
    for branch, opened in zip(spec.branches, gates, strict=True):
        ran = [name for name, _ in nodes if _branch(name) == branch.name and not ALWAYS.fullmatch(name)]
        if ran and not opened:
            raise SkipError(f"{branch.name} is closed ({where}) and still runs {len(ran)} nodes: {', '.join(ran[:4])}")
        if opened and not ran and not branch.removed:
            raise SkipError(f"{branch.name} is open ({where}) and runs no node of its own that the runtime tells")


def _check_matrix(spec: ProgramSpec, kernels: Sequence[str], gates: np.ndarray, where: str) -> None:
    """Every matrix kernel is the stem's, the head's, a merge's, a gate's, a skip row's, or an open branch's."""
    opened = {b.name for b, state in zip(spec.branches, gates, strict=True) if state}
    unexplained = [
        name
        for name in kernels
        if not (name.startswith(("stem", "head", "merge.")) or ALWAYS.fullmatch(name) or _branch(name) in opened)
    ]
    if unexplained:
        raise SkipError(
            f"{len(unexplained)} matrix kernels ran that belong to no open branch ({where}): "
            f"{', '.join(unexplained[:4])}"
        )


def _branch(name: str) -> str:
    """Return `b03_mhsa.qkv/y` and `b03_mhsa/scores` are of `b03_mhsa`."""
    return re.split(r"[./]", name, maxsplit=1)[0]
