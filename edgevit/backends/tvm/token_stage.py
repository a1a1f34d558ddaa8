"""Kernels of T2T-ViT's stem, each over all blocks of a soft split: what a block needs lies where the last one's lay.

Shapes: B tokens of a block, T of a stage, C columns of a window, K = token_dim, m features of a performer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgevit.backends.tvm import performer, soft_split
from edgevit.backends.tvm.code import Code, buffer, tensor
from edgevit.backends.tvm.kernels import Epilogue, Weights, multiply_rows, norm_rows
from edgevit.backends.tvm.layout import Place
from edgevit.backends.tvm.schedules import Isa, Tile
from edgevit.backends.tvm.soft_split import Split

Linear = tuple[Weights, Tile]
Norm = tuple[int, int, int, float]
"""What `layer_norm` takes behind its source and target."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The image, normalised as pixel * scale - shift per channel."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Blocks `[B, C]` of a soft split of the image, or of a map of tokens; `lines` and `rows` are for one block."""

    split: Split
    origin: Pixels | Place
    lines: Place
    rows: Place

    @property
    def takes(self) -> tuple[str, ...]:
        """Parameters of a kernel that makes them and takes weights."""
        return ("image", "arena", "weights") if isinstance(self.origin, Pixels) else ("arena", "weights")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """First pass of a performer: value `[T, K]`, mixed `[m, K]` = kp^T v and total `[1, m]` = sum of kp.

    `key` and `features` are a block's; `product` is the tile of kp^T v.
    """

    windows: Windows
    norm: Norm
    to_key: Linear
    to_value: Linear
    project: Linear
    key: Place
    features: Place
    value: Place
    mixed: Place
    total: Place
    product: Tile


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What follows attention: value += proj(attended), value += fc2(gelu(fc1(norm(value)))).

    `normed` and `hidden` are a block's.
    """

    proj: Linear
    norm: Norm
    fc1: Linear
    fc2: Linear
    normed: Place
    hidden: Place
    value: Place


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Second pass of a performer.

    `query`, `features` and `attended` are a block's, `product` is the tile of qp mixed.
    """

    windows: Windows
    norm: Norm
    to_query: Linear
    project: Linear
    query: Place
    features: Place
    mixed: Place
    total: Place
    attended: Place
    product: Tile
    tail: Tail


def keys(isa: Isa, arena: int, blob: int, work: Keys) -> Any:
    """The first pass of a performer."""
    scope = _Scope(isa, arena, blob)
    for place in (work.mixed, work.total):
        performer.clear(scope.code, scope.lanes, scope.memory, place)

    def block(index: Any) -> None:
        value, rows = _block(work.value, index, work.key.rows), work.windows.rows
        scope.norm(rows, rows, work.norm)
        scope.product(rows, work.key, work.to_key)
        scope.product(rows, value, work.to_value)
        scope.features(work.key, work.features, work.project)
        memory, product = scope.memory, work.product
        performer.add_keys(scope.code, scope.lanes, memory, work.features, value, work.mixed, work.total, product)

    return scope.blocks(work.windows, block)


def queries(isa: Isa, arena: int, blob: int, work: Queries) -> Any:
    """The second pass of a performer, and what follows attention."""
    scope = _Scope(isa, arena, blob)

    def block(index: Any) -> None:
        rows = work.windows.rows
        scope.norm(rows, rows, work.norm)
        scope.product(rows, work.query, work.to_query)
        scope.features(work.query, work.features, work.project)
        memory, mixed, total = scope.memory, work.mixed, work.total
        performer.mix(scope.code, scope.lanes, memory, work.features, mixed, total, work.attended, work.product)
        scope.tail(work.tail, work.attended, index)

    return scope.blocks(work.windows, block)


def project(isa: Isa, arena: int, blob: int, windows: Windows, norm: Norm, linear: Linear, target: Place) -> Any:
    """Target `[T, N]` = norm(windows) times weights."""
    scope = _Scope(isa, arena, blob)

    def block(index: Any) -> None:
        scope.norm(windows.rows, windows.rows, norm)
        scope.product(windows.rows, _block(target, index, windows.rows.rows), linear)

    return scope.blocks(windows, block)


def tail(isa: Isa, arena: int, blob: int, work: Tail, attended: Place, blocks: int) -> Any:
    """What follows attention, for all tokens."""
    scope = _Scope(isa, arena, blob)
    with scope.code.loop(blocks) as index:
        scope.tail(work, _block(attended, index, work.normed.rows), index)
    return scope.code.function([scope.memory, scope.values])


def unfold(isa: Isa, arena: int, windows: Windows, target: Place) -> Any:
    """All windows of a map, one row each."""
    code, memory, split = Code(), buffer("arena", arena), windows.split
    assert isinstance(windows.origin, Place)
    with code.loop(split.blocks) as index:
        soft_split.map_lines(code, isa.lanes, memory, split, index, windows.origin, windows.lines)
        soft_split.unfold(code, isa.lanes, memory, split, windows.lines, _block(target, index, split.block))
    return code.function([memory])


class _Scope:
    """A kernel being written."""

    def __init__(self, isa: Isa, arena: int, blob: int) -> None:
        self.code, self.lanes = Code(), isa.lanes
        self.memory, self.values = buffer("arena", arena), buffer("weights", blob)

    def blocks(self, windows: Windows, body: Callable[[Any], None]) -> Any:
        """The finished kernel: every block's windows, and what `body` does with them."""
        code, split, origin = self.code, windows.split, windows.origin
        parameters = [self.memory, self.values]
        if isinstance(origin, Pixels):
            image = tensor("image", (1, split.rows, split.columns, split.channels), "uint8")
            parameters, flat = [image, *parameters], code.flat(image, "uint8")
        with code.loop(split.blocks) as index:
            if isinstance(origin, Pixels):
                scale, shift, lines = origin.scale, origin.shift, windows.lines
                soft_split.image_lines(code, self.lanes, flat, self.memory, split, index, scale, shift, lines)
            else:
                soft_split.map_lines(code, self.lanes, self.memory, split, index, origin, windows.lines)
            soft_split.unfold(code, self.lanes, self.memory, split, windows.lines, windows.rows)
            body(index)
        return code.function(parameters)

    def norm(self, source: Place, target: Place, norm: Norm) -> None:
        norm_rows(self.code, self.lanes, self.memory, self.values, source, target, *norm)

    def product(self, source: Place, target: Place, linear: Linear, epilogue: Epilogue | None = None) -> None:
        last = epilogue or Epilogue()
        multiply_rows(self.code, self.lanes, self.memory, self.values, source, target, *linear, last)

    def features(self, source: Place, target: Place, projection: Linear) -> None:
        self.product(source, target, projection)
        performer.features(self.code, self.lanes, self.memory, source, target, target.width)

    def tail(self, work: Tail, attended: Place, index: Any) -> None:
        value = _block(work.value, index, work.normed.rows)
        self.product(attended, value, work.proj, Epilogue(onto=True))
        self.norm(value, work.normed, work.norm)
        self.product(work.normed, work.hidden, work.fc1, Epilogue(activation="gelu"))
        self.product(work.hidden, value, work.fc2, Epilogue(onto=True))


def _block(place: Place, index: Any, rows: int) -> Place:
    """Rows `index * rows` on."""
    return replace(place, offset=place.offset + index * (rows * place.stride), rows=rows)
