"""Where values lie: activations in one arena that every branch reuses, weights in one flat array per branch.

The residual stream stays at the start of the arena for the whole run and is updated in place; behind it every stage
lays out its own values from the same address on, so the arena is as large as the largest stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevit.backends.tvm.codegen.schedules import Tile, pad, panels

# Runtimes hand kernels data that is aligned to 64 bytes; 16 float32 are 64 bytes.
ALIGN = 16


@dataclass(frozen=True, kw_only=True)
class Place:
    """A matrix in the arena: float32, `rows` x `width` used columns, `stride` elements from row to row."""

    offset: int
    rows: int
    width: int
    stride: int

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.stride

    def first(self, rows: int) -> Place:
        """Return the first `rows` rows."""
        return Place(offset=self.offset, rows=rows, width=self.width, stride=self.stride)

    def after(self, rows: int) -> Place:
        """Return the rows from `rows` on."""
        return Place(
            offset=self.offset + rows * self.stride, rows=self.rows - rows, width=self.width, stride=self.stride
        )

    def moved(self, distance: Any) -> Place:
        """Return the same, so many elements behind."""
        return replace(self, offset=self.offset + distance)

    def columns(self, start: int, width: int) -> Place:
        """Return columns `start` to `start + width`, in place."""
        return Place(offset=self.offset + start, rows=self.rows, width=width, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class Alive:
    """How many rows of the stream there are, where that follows the image: what a run's output `tokens` says.

    These are the `prefix` and the patch tokens left after point number `point` of `points`.
    """

    prefix: int
    point: int
    points: int


class Arena:
    """Hands out places one behind the other and remembers the largest extent."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._end = 0
        self.size = 0

    def place(self, rows: int, width: int) -> Place:
        """Return a new matrix behind the last one, rows padded to whole vectors."""
        stride = pad(width, self._lanes)
        found = Place(offset=self._end, rows=rows, width=width, stride=stride)
        self._end = pad(found.end, ALIGN)
        self.size = max(self.size, self._end)
        return found

    def mark(self) -> int:
        return self._end

    def repeat(self, mark: int, times: int) -> int:
        """Reserve `times` copies in all of what was handed out since `mark`; return the distance between copies."""
        distance = self._end - mark
        self._end = mark + times * distance
        self.size = max(self.size, self._end)
        return distance

    def release(self, mark: int) -> None:
        """Forget every place handed out since `mark`."""
        self._end = mark


class Blob:
    """The weights of one stage, one behind the other in a flat float32 array."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self.size = 0

    def add(self, values: np.ndarray) -> int:
        """Append an array and return the element it starts at."""
        offset = self.size
        flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
        self._parts.append(np.pad(flat, (0, -flat.size % ALIGN)))
        self.size += self._parts[-1].size
        return offset

    def array(self) -> np.ndarray:
        return np.concatenate(self._parts)


def words(values: np.ndarray) -> np.ndarray:
    """Return the bytes of an array as flat float32, zeros behind them up to a whole one; bits, not numbers."""
    flat = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    return np.pad(flat, (0, -flat.size % 4)).view(np.float32)


def pad_columns(values: np.ndarray, width: int) -> np.ndarray:
    """Return zeros to the right of the last axis, up to `width`."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])])


def pad_heads(values: np.ndarray, heads: int, head_dim: int, padded: int) -> np.ndarray:
    """Map `[..., heads * head_dim]` to `[..., heads * padded]`, zeros behind every head."""
    split = values.reshape(*values.shape[:-1], heads, head_dim)
    return pad_columns(split, padded).reshape(*values.shape[:-1], heads * padded)


def pack(weight: np.ndarray, tile: Tile, lanes: int) -> np.ndarray:
    """Return `[depth, columns]` as the inner loop reads it: panel by panel, each `[depth, columns of the panel]`.

    Columns must be whole vectors already.
    """
    depth, columns = weight.shape
    full, rest = panels(columns, tile, lanes)
    width = tile.vectors * lanes
    body = weight[:, : full * width].reshape(depth, full, width).transpose(1, 0, 2)
    return np.concatenate([body.ravel(), weight[:, columns - rest * lanes :].ravel() if rest else body[:0].ravel()])
