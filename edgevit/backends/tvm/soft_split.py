"""T2T-ViT's soft splits (arXiv 2101.11986): overlapping windows of an image or a map of tokens, one row per window.

A map is first copied into lines with zeros around it; then every window is a few runs of such lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgevit.backends.tvm.code import Code, buffer, load, load_vector, number, splat, tensor, to_float
from edgevit.backends.tvm.layout import Place
from edgevit.backends.tvm.schedules import Isa


@dataclass(frozen=True, kw_only=True)
class Split:
    """Windows of `kernel` x `kernel` of `channels` values, `stride` apart, on `rows` x `columns` with zeros around."""

    rows: int
    columns: int
    channels: int
    kernel: int
    stride: int
    padding: int

    @property
    def steps(self) -> tuple[int, int]:
        """Windows per column and per row."""
        down, right = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (self.rows, self.columns))
        return down, right

    @property
    def windows(self) -> int:
        return self.steps[0] * self.steps[1]

    @property
    def width(self) -> int:
        """Values of a window."""
        return self.kernel * self.kernel * self.channels

    @property
    def lines(self) -> tuple[int, int]:
        """Rows and values per row of the map with its zeros."""
        return self.rows + 2 * self.padding, (self.columns + 2 * self.padding) * self.channels


def image_lines(
    isa: Isa, arena: int, split: Split, scale: tuple[float, ...], shift: tuple[float, ...], target: Place
) -> Any:
    """The uint8 image as float lines with zeros around them: pixel * scale - shift, per channel."""
    code = Code()
    image, memory = tensor("image", (1, split.rows, split.columns, split.channels), "uint8"), buffer("arena", arena)
    flat = code.flat(image, "uint8")
    _clear(code, memory, target, isa.lanes)
    with code.loop(split.rows) as row, code.loop(split.columns) as column:
        place = target.offset + (row + split.padding) * target.stride + (column + split.padding) * split.channels
        for channel in range(split.channels):
            pixel = to_float(load(flat, (row * split.columns + column) * split.channels + channel))
            code.store(memory, place + channel, pixel * number(scale[channel]) - number(shift[channel]))
    return code.function([image, memory])


def map_lines(isa: Isa, arena: int, split: Split, source: Place, target: Place) -> Any:
    """Tokens, one row each, as lines of a map with zeros around them."""
    code = Code()
    memory = buffer("arena", arena)
    _clear(code, memory, target, isa.lanes)
    with code.loop(split.rows) as row, code.loop(split.columns) as column:
        place = target.offset + (row + split.padding) * target.stride + (column + split.padding) * split.channels
        _copy(code, memory, source.offset + (row * split.columns + column) * source.stride, place, split.channels, isa)
    return code.function([memory])


def unfold(isa: Isa, arena: int, split: Split, source: Place, target: Place) -> Any:
    """Every window of lines as one row of the target, in (row, column, channel) order; zeros behind it."""
    code = Code()
    memory = buffer("arena", arena)
    down, right = split.steps
    run = split.kernel * split.channels
    with code.loop(down) as row, code.loop(right) as column:
        place = target.offset + (row * right + column) * target.stride
        with code.loop(split.kernel) as line:
            begin = source.offset + (row * split.stride + line) * source.stride + column * split.stride * split.channels
            _copy(code, memory, begin, place + line * run, run, isa)
        with code.loop(target.stride - split.width) as i:
            code.store(memory, place + split.width + i, number(0.0))
    return code.function([memory])


def _clear(code: Code, memory: Any, target: Place, lanes: int) -> None:
    with code.loop(target.rows * target.stride // lanes) as v:
        code.store_vector(memory, target.offset + v * lanes, splat(0.0, lanes), lanes)


def _copy(code: Code, memory: Any, source: Any, target: Any, count: int, isa: Isa) -> None:
    lanes = isa.lanes
    with code.loop(count // lanes) as v:
        code.store_vector(memory, target + v * lanes, load_vector(memory, source + v * lanes, lanes), lanes)
    with code.loop(count % lanes) as i:
        last = count - count % lanes + i
        code.store(memory, target + last, load(memory, source + last))
