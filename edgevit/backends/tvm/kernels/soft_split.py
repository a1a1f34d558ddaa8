"""T2T-ViT's soft splits (arXiv 2101.11986): overlapping windows of an image or a map of tokens, one row per window.

A few rows of windows at a time: the lines that they cover are copied with zeros around them, then every window is a few
runs of such lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgevit.backends.tvm.codegen.code import (
    Code,
    larger,
    literal,
    load,
    load_vector,
    number,
    smaller,
    splat,
    to_float,
)
from edgevit.backends.tvm.codegen.layout import Place


@dataclass(frozen=True, kw_only=True)
class Split:
    """Windows of `kernel` x `kernel` of `channels` values, `stride` apart, on `rows` x `columns` with zeros around.

    They are made `down` rows of windows at a time, a divisor of all of them.
    """

    rows: int
    columns: int
    channels: int
    kernel: int
    stride: int
    padding: int
    down: int

    @property
    def steps(self) -> tuple[int, int]:
        """Return the number of windows per column and per row."""
        down, right = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (self.rows, self.columns))
        return down, right

    @property
    def windows(self) -> int:
        return self.steps[0] * self.steps[1]

    @property
    def width(self) -> int:
        """Return the number of values of a window."""
        return self.kernel * self.kernel * self.channels

    @property
    def blocks(self) -> int:
        return self.steps[0] // self.down

    @property
    def block(self) -> int:
        """Return the number of windows of a block."""
        return self.down * self.steps[1]

    @property
    def lines(self) -> tuple[int, int]:
        """Return rows and values per row of what a block covers, with its zeros."""
        return (self.down - 1) * self.stride + self.kernel, (self.columns + 2 * self.padding) * self.channels


def image_lines(
    code: Code,
    lanes: int,
    flat: Any,
    memory: Any,
    split: Split,
    block: Any,
    scale: tuple[float, ...],
    shift: tuple[float, ...],
    target: Place,
) -> None:
    """A block's lines of the uint8 image `flat`, as float: pixel * scale - shift, per channel."""
    width = split.columns * split.channels
    period = lanes * split.channels  # after which vectors see the same channels again
    scales, shifts = (tuple(values[i % split.channels] for i in range(period)) for values in (scale, shift))

    def line(pixels: Any, place: Any) -> None:
        with code.loop(width // period) as group:
            for v in range(0, period, lanes):
                at = group * period + v
                x = to_float(load_vector(flat, pixels + at, lanes), lanes)
                x = x * literal(scales[v : v + lanes]) - literal(shifts[v : v + lanes])
                code.store_vector(memory, place + at, x, lanes)
        for at in range(width - width % period, width):
            x = to_float(load(flat, pixels + at))
            c = at % split.channels
            code.store(memory, place + at, x * number(scale[c]) - number(shift[c]))

    _lines(code, lanes, memory, split, block, target, width, line)


def map_lines(code: Code, lanes: int, memory: Any, split: Split, block: Any, source: Place, target: Place) -> None:
    """A block's lines of a map of tokens, which are the rows of `source`."""

    def line(values: Any, place: Any) -> None:
        with code.loop(split.columns) as column:
            begin = source.offset + (values + column) * source.stride
            _copy(code, memory, begin, place + column * split.channels, split.channels, lanes)

    _lines(code, lanes, memory, split, block, target, split.columns, line)


def unfold(code: Code, lanes: int, memory: Any, split: Split, source: Place, target: Place) -> None:
    """Every window of a block's lines as one row of the target, in (row, column, channel) order; zeros behind it."""
    right, run = split.steps[1], split.kernel * split.channels
    with code.loop(split.down) as row, code.loop(right) as column:
        place = target.offset + (row * right + column) * target.stride
        with code.loop(split.kernel) as line:
            begin = source.offset + (row * split.stride + line) * source.stride + column * split.stride * split.channels
            _copy(code, memory, begin, place + line * run, run, lanes)
        with code.loop(target.stride - split.width) as i:
            code.store(memory, place + split.width + i, number(0.0))


def _lines(code: Code, lanes: int, memory: Any, split: Split, block: Any, target: Place, width: int, line: Any) -> None:
    """Clear the target, then `line(first value, place)` for every line of the block that is not all padding."""
    with code.loop(target.rows * target.stride // lanes) as v:
        code.store_vector(memory, target.offset + v * lanes, splat(0.0, lanes), lanes)
    top = block * (split.down * split.stride) - split.padding
    low, high = larger(-top, 0), smaller(split.rows - top, target.rows)
    with code.loop(high - low) as i:
        place = target.offset + (low + i) * target.stride + split.padding * split.channels
        line((top + low + i) * width, place)


def _copy(code: Code, memory: Any, source: Any, target: Any, count: int, lanes: int) -> None:
    with code.loop(count // lanes) as v:
        code.store_vector(memory, target + v * lanes, load_vector(memory, source + v * lanes, lanes), lanes)
    with code.loop(count % lanes) as i:
        last = count - count % lanes + i
        code.store(memory, target + last, load(memory, source + last))
