"""Kernels of T2T-ViT's stem, each over all blocks of a soft split: what a block needs lies where the last one's lay.

Threads share the blocks; what is a block's there is once for every thread, `distance` elements behind the last one's.

Shapes: B tokens of a block, T of a stage, C columns of a window, K = token_dim, m features of a performer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgevit.backends.tvm.codegen.code import Code, buffer, tensor
from edgevit.backends.tvm.codegen.layout import Place
from edgevit.backends.tvm.codegen.schedules import Isa, Tile
from edgevit.backends.tvm.codegen.threads import Part, shared
from edgevit.backends.tvm.kernels import performer, soft_split
from edgevit.backends.tvm.kernels.common import Epilogue, Weights, multiply_rows
from edgevit.backends.tvm.kernels.norm import norm_rows
from edgevit.backends.tvm.kernels.soft_split import Split

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
        """Return parameters of a kernel that makes them and takes weights."""
        return ("image", "arena", "weights") if isinstance(self.origin, Pixels) else ("arena", "weights")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """First pass of a performer: value `[T, K]`, mixed `[m, K]` = kp^T v and total `[1, m]` = sum of kp.

    `key` and `features` are a block's, and so are `mixed` and `total` until all are added; `product` is the tile of
    kp^T v.
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
    distance: int


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
    distance: int


Own = Callable[[Place], Place]
"""What is a block's to where it is in the thread that computes it."""


def keys(isa: Isa, arena: int, blob: int, work: Keys) -> Any:
    """Return the first pass of a performer."""
    scope = _Scope(isa, arena, blob)
    code, lanes, memory, product = scope.code, scope.lanes, scope.memory, work.product
    sums = (work.mixed, work.total)

    def begin(own: Own) -> None:
        for place in sums:
            performer.clear(code, lanes, memory, own(place))

    def block(index: Any, own: Own) -> None:
        rows, key, features = (own(place) for place in (work.windows.rows, work.key, work.features))
        value = _block(work.value, index, key.rows)
        scope.norm(rows, rows, work.norm)
        scope.product(rows, key, work.to_key)
        scope.product(rows, value, work.to_value)
        scope.features(key, features, work.project)
        mixed, total = map(own, sums)
        performer.add_keys(code, lanes, memory, features, value, mixed, total, product)

    count = scope.blocks(work.windows, work.distance, block, begin)
    for thread in range(1, count):
        for place in sums:
            performer.add(code, lanes, memory, place.moved(thread * work.distance), place)
    return scope.finished()


def queries(isa: Isa, arena: int, blob: int, work: Queries) -> Any:
    """Return the second pass of a performer, and what follows attention."""
    scope = _Scope(isa, arena, blob)

    def block(index: Any, own: Own) -> None:
        rows, query, features = (own(place) for place in (work.windows.rows, work.query, work.features))
        scope.norm(rows, rows, work.norm)
        scope.product(rows, query, work.to_query)
        scope.features(query, features, work.project)
        memory, attended = scope.memory, own(work.attended)
        performer.mix(scope.code, scope.lanes, memory, features, work.mixed, work.total, attended, work.product)
        scope.tail(work.tail, attended, index, own)

    scope.blocks(work.windows, work.distance, block)
    return scope.finished()


def project(
    isa: Isa, arena: int, blob: int, windows: Windows, norm: Norm, linear: Linear, target: Place, distance: int
) -> Any:
    """Return target `[T, N]` = norm(windows) times weights."""
    scope = _Scope(isa, arena, blob)

    def block(index: Any, own: Own) -> None:
        rows = own(windows.rows)
        scope.norm(rows, rows, norm)
        scope.product(rows, _block(target, index, rows.rows), linear)

    scope.blocks(windows, distance, block)
    return scope.finished()


def tail(isa: Isa, arena: int, blob: int, work: Tail, attended: Place, blocks: int, distance: int) -> Any:
    """Return what follows attention, for all tokens."""
    scope = _Scope(isa, arena, blob)
    with shared(scope.code, scope.threads, blocks) as part, scope.code.loop(part.end - part.first) as turn:
        index = part.first + turn
        scope.tail(work, _block(attended, index, work.normed.rows), index, _own(part, distance))
    return scope.finished()


def unfold(isa: Isa, arena: int, windows: Windows, target: Place, distance: int) -> Any:
    """Return all windows of a map, one row each."""
    code, memory, split = Code(), buffer("arena", arena), windows.split
    assert isinstance(windows.origin, Place)
    with shared(code, isa.threads, split.blocks) as part, code.loop(part.end - part.first) as turn:
        index, lines = part.first + turn, _own(part, distance)(windows.lines)
        soft_split.map_lines(code, isa.lanes, memory, split, index, windows.origin, lines)
        soft_split.unfold(code, isa.lanes, memory, split, lines, _block(target, index, split.block))
    return code.function([memory])


class _Scope:
    """A kernel being written."""

    def __init__(self, isa: Isa, arena: int, blob: int) -> None:
        self.code, self.lanes, self.threads = Code(), isa.lanes, isa.threads
        self.memory, self.values = buffer("arena", arena), buffer("weights", blob)
        self._parameters = [self.memory, self.values]
        self._serial = replace(isa, threads=1)  # a block is one thread's

    def finished(self) -> Any:
        return self.code.function(self._parameters)

    def blocks(
        self,
        windows: Windows,
        distance: int,
        body: Callable[[Any, Own], None],
        begin: Callable[[Own], None] = lambda _: None,
    ) -> int:
        """Every block's windows, and what `body` does with them; how many threads share them, each after `begin`."""
        code, split, origin, flat = self.code, windows.split, windows.origin, None
        if isinstance(origin, Pixels):
            image = tensor("image", (1, split.rows, split.columns, split.channels), "uint8")
            self._parameters, flat = [image, *self._parameters], code.flat(image, "uint8")
        with shared(code, self.threads, split.blocks) as part:
            own = _own(part, distance)
            lines = own(windows.lines)
            begin(own)
            with code.loop(part.end - part.first) as turn:
                index = part.first + turn
                if isinstance(origin, Pixels):
                    scale, shift = origin.scale, origin.shift
                    soft_split.image_lines(code, self.lanes, flat, self.memory, split, index, scale, shift, lines)
                else:
                    soft_split.map_lines(code, self.lanes, self.memory, split, index, origin, lines)
                soft_split.unfold(code, self.lanes, self.memory, split, lines, own(windows.rows))
                body(index, own)
        return part.count

    def norm(self, source: Place, target: Place, norm: Norm) -> None:
        norm_rows(self.code, self._serial, self.memory, self.values, source, target, *norm)

    def product(self, source: Place, target: Place, linear: Linear, epilogue: Epilogue | None = None) -> None:
        last = epilogue or Epilogue()
        multiply_rows(self.code, self._serial, self.memory, self.values, source, target, *linear, last)

    def features(self, source: Place, target: Place, projection: Linear) -> None:
        self.product(source, target, projection)
        performer.features(self.code, self.lanes, self.memory, source, target, target.width)

    def tail(self, work: Tail, attended: Place, index: Any, own: Own) -> None:
        value, normed, hidden = _block(work.value, index, work.normed.rows), own(work.normed), own(work.hidden)
        self.product(attended, value, work.proj, Epilogue(onto=True))
        self.norm(value, normed, work.norm)
        self.product(normed, hidden, work.fc1, Epilogue(activation="gelu"))
        self.product(hidden, value, work.fc2, Epilogue(onto=True))


def _own(part: Part, distance: int) -> Own:
    return lambda place: place.moved(part.index * distance)


def _block(place: Place, index: Any, rows: int) -> Place:
    """Return rows `index * rows` on."""
    return replace(place, offset=place.offset + index * (rows * place.stride), rows=rows)
