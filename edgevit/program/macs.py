"""Multiply-accumulates (MACs) of a Program, per part, as the lowered graph executes them.

Counted: every Linear and both attention products. Not counted: norms, softmax, activations, additions.
`full_rows=True` gives the count of the literature, where every branch computes every token; the lowered graph computes
only the token rows that the head reads in the last MHSA and the last FFN (see `rows_out`). Merged tokens are fewer rows
in both. Where their number follows the image, `left` says how many there are (`tokens.Left`, a run's output `tokens`);
without it the counts are of the image that keeps most tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevit.program.spec import BranchSpec, ProgramSpec
from edgevit.program.tokens import Left, merge_products, tokens_before


def rows_out(spec: ProgramSpec, left: Left = None) -> tuple[int, ...]:
    """Token rows each branch must hand on: all, except at the end of a model whose head reads prefix tokens only.

    What is merged after a branch is still of these.

    A row after which no branch mixes tokens (no MHSA follows) is dead unless the head reads it.
    """
    before = tokens_before(spec, left)
    rows = list(before[:-1])
    if spec.head.pool != "prefix":
        return tuple(rows)
    for index in range(len(spec.branches) - 1, -1, -1):
        rows[index] = spec.head.prefix
        branch = spec.branches[index]
        if branch.gate is not None and branch.gate.pool == "mean":
            rows = [before[i] if i < index else r for i, r in enumerate(rows)]
            break
        if branch.kind == "mhsa" and not branch.removed:
            break
    return tuple(rows)


def rows_in(spec: ProgramSpec, left: Left = None) -> tuple[int, ...]:
    """Return token rows each branch receives."""
    handed_on = (spec.tokens, *rows_out(spec, left)[:-1])
    return tuple(min(pair) for pair in zip(handed_on, tokens_before(spec, left)[:-1], strict=False))


def branch_macs(spec: ProgramSpec, branch: BranchSpec, rows: int, rows_read: int) -> int:
    """Return MACs of one branch run: `rows` token rows are produced, `rows_read` are read (keys and values)."""
    if branch.removed:
        return 0
    if branch.kind == "ffn":
        return 2 * rows * spec.dim * branch.width
    queries_and_projection = 2 * rows * spec.dim * branch.width
    keys_and_values = 2 * rows_read * spec.dim * branch.width
    products = 2 * rows * rows_read * branch.width
    return queries_and_projection + keys_and_values + products


def macs_by_branch(spec: ProgramSpec, *, full_rows: bool = False, left: Left = None) -> tuple[int, ...]:
    """Return MACs of every branch when it runs, in order."""
    read = tokens_before(spec, left)[:-1] if full_rows else rows_in(spec, left)
    handed_on = read if full_rows else rows_out(spec, left)
    return tuple(branch_macs(spec, b, o, i) for b, o, i in zip(spec.branches, handed_on, read, strict=True))


def stem_macs(spec: ProgramSpec) -> int:
    """Return MACs of the stem; for T2T-ViT both token-to-token stages (performer or full attention) are counted."""
    stem = spec.stem
    if stem.kind == "patch":
        return spec.patches * stem.patch * stem.patch * 3 * spec.dim
    total = spec.patches * 9 * stem.token_dim * spec.dim
    width, side_rows, side_columns, d = 147, spec.image.height // 4, spec.image.width // 4, stem.token_dim
    for _ in range(2):
        tokens = side_rows * side_columns
        total += tokens * (width * 3 * d + d * d + 2 * d * d)
        if stem.kind == "t2t_performer":
            features = d // 2
            total += tokens * (2 * features * d + 2 * features * d)
        else:
            total += 2 * tokens * tokens * d
        width, side_rows, side_columns = 9 * d, side_rows // 2, side_columns // 2
    return total


def head_macs(spec: ProgramSpec) -> int:
    """Return MACs of the classifier."""
    head = spec.head
    if not head.linear:
        return 0
    return spec.dim * (head.prefix if head.pool == "prefix" else 1) * head.classes


def gate_macs(spec: ProgramSpec) -> int:
    """Return MACs of all gates, which run on every path."""
    return sum(spec.dim for b in spec.branches if b.gate is not None)


def merge_macs(spec: ProgramSpec, left: Left = None) -> int:
    """Return MACs of all merges, which run on every path: the scores of the matching, and what adds pairs up."""
    return sum(merge_products(spec, left))


def total_macs(spec: ProgramSpec, *, full_rows: bool = False, left: Left = None) -> int:
    """Return MACs of the all-open path."""
    always = stem_macs(spec) + head_macs(spec) + gate_macs(spec) + merge_macs(spec, left)
    return always + sum(macs_by_branch(spec, full_rows=full_rows, left=left))


def run_macs(spec: ProgramSpec, gates: Sequence[int] | np.ndarray, left: Left = None) -> int:
    """Return MACs of one run, from its outputs `gates` (1 = the branch ran, one per branch) and `tokens`."""
    always = stem_macs(spec) + head_macs(spec) + gate_macs(spec) + merge_macs(spec, left)
    return always + sum(m for m, ran in zip(macs_by_branch(spec, left=left), gates, strict=True) if ran)
