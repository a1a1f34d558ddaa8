"""Skipped is skipped, exactly: the products that a run executes are those of its open branches and nothing else.

The instructions of matrix kernels depend on shapes only, not on data. So over runs with any gates, the count of each
class is `base + sum of the open branches' costs`, where branches of one shape cost the same: an overdetermined linear
system over whole numbers. A branch that runs although its gate is closed, or that runs in part, contradicts it. What
all runs have in common, the base, is held against the MACs outside the branches, with a margin.

Where the number of tokens follows the image, all this holds among runs with equal numbers. Between others, with equal
gates, what is executed is a sum over the points where tokens merge, of costs that depend on the tokens left there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from edgevit.errors import SkipError

PRODUCTS = ("multiply_add", "dot", "matrix", "widening")
MACS = (4, 16, 32, 8)  # multiply-accumulates of one instruction of each, at most
EXACT = 0.5  # whole numbers agree when they differ by less
ROUNDING = 1e-11  # of a fit's largest number
MOST_TILE = 32  # rows that kernels compute together, at most: fewer tokens than that may save nothing
BASE_MARGIN = 0.15  # of all: products that are no MACs of the model's, and instructions that do less than they could


@dataclass(frozen=True, kw_only=True)
class CountedRun:
    """One inference: its gates, uint8 per branch, and executed instructions by class.

    `tokens` are the patch tokens left after each point where they merge, if their number follows the image.
    """

    gates: tuple[int, ...]
    classes: Mapping[str, int]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SkipCounts:
    """What was found. `spare`: equations beyond those that the unknowns need, each of which could have failed.

    `patterns` are gates, and with them numbers of tokens.
    """

    runs: int
    patterns: int
    unknowns: int
    spare: int
    summary: str


def check_skip_instructions(
    runs: Sequence[CountedRun], shapes: Sequence[Hashable | None], base_share: float = 1.0
) -> SkipCounts:
    """Hold the counts of some runs against each other, exactly.

    Args:
        runs: inferences of one model, several with equal gates.
        shapes: per branch what its cost depends on; None for a branch without a gate.
        base_share: share of the all-open path's MACs that are outside gated branches.

    Raises:
        SkipError: equal gates with unequal counts, counts that no cost per shape explains, a shape without a cost, or
            more work with all gates closed than `base_share` allows; fewer tokens that save nothing, or counts that
            the tokens do not explain.
    """
    by_tokens: dict[tuple[int, ...], list[CountedRun]] = {}
    for run in runs:
        by_tokens.setdefault(run.tokens, []).append(run)
    found = [_check_gates(group, shapes, base_share) for group in by_tokens.values()]
    if len(found) == 1:
        return found[0]
    patterns, explained = sum(counts.patterns for counts in found), _check_tokens(runs, shapes)
    spare = explained + sum(counts.spare for counts in found)
    return SkipCounts(
        runs=len(runs),
        patterns=patterns,
        unknowns=patterns - spare,
        spare=spare,
        summary=(
            f"{len(runs)} runs over {patterns} patterns of gates and {len(by_tokens)} numbers of tokens: equal ones "
            "execute equal products, and every count is exactly what its open branches and its tokens cost "
            f"({spare} equations to spare)"
        ),
    )


def _check_tokens(runs: Sequence[CountedRun], shapes: Sequence[Hashable | None]) -> int:
    """Hold runs of equal gates and other tokens against each other; return the equations that could have failed.

    Raises:
        SkipError: fewer tokens execute as much with all gates open, or the counts are no sum over the points.
    """
    by_gates: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for run in runs:
        by_gates.setdefault(run.gates, {})[run.tokens] = [run.classes[name] for name in PRODUCTS]
    spare = 0
    for gates, counts in by_gates.items():
        all_open = all(gate for gate, shape in zip(gates, shapes, strict=True) if shape is not None)
        for few, many in permutations(counts, 2):
            saved = [b - a for a, b in zip(few, many, strict=True)]
            if all_open and min(saved) >= 0 and sum(saved) >= MOST_TILE and sum(counts[few]) >= sum(counts[many]):
                raise SkipError(
                    f"with {_listed(few)} tokens left {sum(counts[few])} products are executed, with {_listed(many)} "
                    f"{sum(counts[many])}: fewer tokens save nothing"
                )
        values = [sorted({tokens[at] for tokens in counts})[1:] for at in range(len(next(iter(counts))))]
        rows = np.array(
            [[1, *(t == v for t, own in zip(tokens, values, strict=True) for v in own)] for tokens in counts],
            np.float64,
        )
        table = np.array(list(counts.values()), dtype=np.float64)
        costs, _, rank, _ = np.linalg.lstsq(rows, table, rcond=None)
        for tokens, miss in zip(counts, np.abs(rows @ costs - table), strict=True):
            # One product too many is spread over the fit, so that little of it is left to see.
            if miss.max() >= ROUNDING * max(1.0, table.max()):
                raise SkipError(
                    f"with {_listed(tokens)} tokens left what is executed is no sum of costs of these numbers (off by "
                    f"{miss.max():.2f}): it depends on more than the gates and the tokens"
                )
        spare += len(counts) - int(rank)
    return spare


def _listed(tokens: Sequence[int]) -> str:
    return ", ".join(map(str, tokens))


def _check_gates(runs: Sequence[CountedRun], shapes: Sequence[Hashable | None], base_share: float) -> SkipCounts:
    """Hold the counts of runs with equal numbers of tokens against each other."""
    by_gates: dict[tuple[int, ...], list[int]] = {}
    for run in runs:
        counts = [run.classes[name] for name in PRODUCTS]
        known = by_gates.setdefault(run.gates, counts)
        if known != counts:
            raise SkipError(
                f"two runs took the same path ({_open(run.gates, shapes)}) and executed {_named(known)} and "
                f"{_named(counts)}: what is executed depends on more than the gates"
            )
    groups = list(dict.fromkeys(shape for shape in shapes if shape is not None))
    rows = np.array([[1, *_opened(gates, shapes, groups)] for gates in by_gates], dtype=np.float64)
    table = np.array(list(by_gates.values()), dtype=np.float64)
    costs, _, rank, _ = np.linalg.lstsq(rows, table, rcond=None)
    for gates, counts, miss in zip(by_gates, table, np.abs(rows @ costs - table), strict=True):
        if miss.max() >= EXACT:
            raise SkipError(
                f"{_open(gates, shapes)}, and {_named(counts)} were executed: no cost per shape of branch "
                f"explains that (off by {miss.max():.0f}), so a closed branch runs, or an open one does not"
            )
    least = costs[1:].sum(axis=1).min() if rank == rows.shape[1] and groups else None
    if least is not None and least < EXACT:
        raise SkipError("a branch executes no product more when it is open than when it is closed: it runs always")
    _least_open(by_gates, shapes)
    _base(by_gates, shapes, base_share)
    spare = len(by_gates) - int(rank)
    return SkipCounts(
        runs=len(runs),
        patterns=len(by_gates),
        unknowns=rows.shape[1],
        spare=spare,
        summary=_summary(len(runs), len(by_gates), spare, gated=bool(groups)),
    )


def _summary(runs: int, patterns: int, spare: int, *, gated: bool) -> str:
    """Return what was found, with no more claimed than could have failed."""
    if not gated:
        return f"nothing is gated; {runs} runs executed equal products"
    told = f"{runs} runs over {patterns} gate patterns: equal gates execute equal products, "
    if spare:
        return f"{told}and every count is exactly what its open branches cost ({spare} equations to spare)"
    return f"{told}and more open branches more (too few patterns to check the cost of every branch's shape)"


def _least_open(by_gates: Mapping[tuple[int, ...], Sequence[int]], shapes: Sequence[Hashable | None]) -> None:
    """Whoever opens more branches executes more products, for every two patterns where one holds the other."""
    for few, many in permutations(by_gates, 2):
        inside = all(a <= b for a, b in zip(few, many, strict=True))
        if inside and sum(by_gates[few]) >= sum(by_gates[many]):
            raise SkipError(
                f"{_open(few, shapes)} executes {sum(by_gates[few])} products, {_open(many, shapes)} "
                f"{sum(by_gates[many])}: a closed branch is not skipped"
            )


def _base(
    by_gates: Mapping[tuple[int, ...], Sequence[int]], shapes: Sequence[Hashable | None], base_share: float
) -> None:
    """Hold the path with all gates closed, if it was taken, against the one with the most branches open."""
    few, many = min(by_gates, key=sum), max(by_gates, key=sum)
    least, most = (sum(n * macs for n, macs in zip(by_gates[gates], MACS, strict=True)) for gates in (few, many))
    closed = not any(gate for gate, shape in zip(few, shapes, strict=True) if shape is not None)
    if few != many and closed and least > (base_share + BASE_MARGIN) * most:
        raise SkipError(
            f"with all gates closed {least / most:.1%} of the products of all open are executed (MACs say "
            f"{base_share:.1%}, limit {base_share + BASE_MARGIN:.1%}): closed branches run, whatever the gates are"
        )


def _opened(gates: Sequence[int], shapes: Sequence[Hashable | None], groups: Sequence[Hashable]) -> list[int]:
    return [sum(g for g, s in zip(gates, shapes, strict=True) if s is not None and s == group) for group in groups]


def _open(gates: Sequence[int], shapes: Sequence[Hashable | None]) -> str:
    gated = [gate for gate, shape in zip(gates, shapes, strict=True) if shape is not None]
    return f"{sum(gated)} of {len(gated)} gates open"


def _named(counts: Sequence[float]) -> str:
    told = (f"{count:.0f} {name}" for name, count in zip(PRODUCTS, counts, strict=True) if count)
    return ", ".join(told) or "no product"
