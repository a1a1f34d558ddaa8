"""Groups of samples that share one gate decision while training: as data, and the split as a pure function.

USDC (arXiv 2310.11117) trains its gates per sub-group of the batch, so that the model that runs at batch 1 is one
that training has met. Its Table 5 compares groups of fixed size (`average`), of random size (`random`) and its own
"recursive split", whose rule could not be read. Two readings of it are here, both reconstructions:

- `halving`: half of what is left, again and again: every step trains every group size.
- `recursive`: halve, and let each half go on by itself down to a depth that is drawn.

`batch` and `sample` are the two ends: one decision for all, one for each. At inference a group is the batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgevit.errors import TrainingError

GroupKind = Literal["batch", "average", "random", "halving", "recursive", "sample"]
ALLOWED = "batch, average N, random LO HI, halving, recursive, sample (1 <= N, 1 <= LO <= HI)"


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How a batch is split. `size` belongs to `average`; `low` and `high` (both included) belong to `random`.

    Raises:
        TrainingError: an unknown kind, or sizes that cannot be.
    """

    kind: GroupKind
    size: int = 0
    low: int = 1
    high: int = 64

    def __post_init__(self) -> None:
        known = self.kind in get_args(GroupKind)
        if not known or (self.kind == "average" and self.size < 1) or not 1 <= self.low <= self.high:
            raise _refusal(str(self))

    def __str__(self) -> str:
        """Return the text that `parse_groups` reads."""
        numbers = {"average": (self.size,), "random": (self.low, self.high)}.get(self.kind, ())
        return " ".join(map(str, (self.kind, *numbers)))


def parse_groups(text: str) -> Groups:
    """Read `batch`, `average N`, `random LO HI`, `halving`, `recursive` or `sample`.

    Raises:
        TrainingError: anything else.
    """
    kind, *words = text.split() or [""]
    if not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        raise _refusal(text)
    match [kind, *map(int, words)]:
        case [("batch" | "halving" | "recursive" | "sample") as plain]:
            return Groups(kind=plain)
        case ["average", int(size)]:
            return Groups(kind="average", size=size)
        case ["random", int(low), int(high)]:
            return Groups(kind="random", low=low, high=high)
    raise _refusal(text)


def split(groups: Groups, batch: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return the group of each sample, int64 `[batch]`: numbers 0, 1, 2, ... in runs, the batch being shuffled already.

    A function of its arguments alone; `seed` (numbers from 0, such as seed and step) moves `random` and `recursive`.
    """
    every = sizes(groups, batch, seed)
    return np.repeat(np.arange(len(every), dtype=np.int64), every)


def sizes(groups: Groups, batch: int, seed: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size of each group, in order; they sum to `batch`, which may be any number from 1.

    - `batch`: one group. `sample`: groups of 1.
    - `average`: groups of `size`, the last of what is left.
    - `random`: each size drawn evenly from `low` to `high`, the last is what is left (so it may be below `low`).
    - `halving`: half of what is left, rounded up, down to 1: 256 -> 128, 64, 32, 16, 8, 4, 2, 1, 1.
    - `recursive`: a group that can be halved L more times (L = ceil(log2 of its size)) is halved with probability
      L / (L + 1), the larger half first, and each half is asked again. So each sample is in a group of each of the
      sizes B, B/2, ..., 2, 1 equally often, where B is a power of two.
    """
    if batch < 1:
        raise ValueError(f"a batch holds at least one sample, got {batch}")
    if groups.kind == "batch":
        return (batch,)
    if groups.kind == "sample":
        return (1,) * batch
    if groups.kind == "halving":
        return _halving(batch)
    if groups.kind == "average":
        whole, rest = divmod(batch, groups.size)
        return (groups.size,) * whole + ((rest,) if rest else ())
    rng = np.random.default_rng(seed)
    return _random(batch, groups.low, groups.high, rng) if groups.kind == "random" else _recursive(batch, rng)


def _halving(batch: int) -> tuple[int, ...]:
    found = []
    while batch:
        found.append((batch + 1) // 2)
        batch //= 2
    return tuple(found)


def _random(batch: int, low: int, high: int, rng: np.random.Generator) -> tuple[int, ...]:
    found = []
    while batch:
        found.append(min(int(rng.integers(low, high + 1)), batch))
        batch -= found[-1]
    return tuple(found)


def _recursive(size: int, rng: np.random.Generator) -> tuple[int, ...]:
    halvings = (size - 1).bit_length()
    if rng.random() * (halvings + 1) >= halvings:
        return (size,)
    return _recursive((size + 1) // 2, rng) + _recursive(size // 2, rng)


def _refusal(got: str) -> TrainingError:
    return TrainingError(f"no such gate groups: {got!r}; allowed: {ALLOWED}; write for example 'average 32'")
