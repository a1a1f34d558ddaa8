"""One head of integer attention on NEON: where its numbers lie, and what the parts of the kernel share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgevit.backends.tvm.codegen.code import (
    Code,
    integer,
    lanes_of,
)
from edgevit.backends.tvm.codegen.dots import Dot
from edgevit.backends.tvm.codegen.integers import BLOCK, WORD, Matrix
from edgevit.backends.tvm.codegen.layout import Arena, Place
from edgevit.backends.tvm.codegen.neon import (
    LANES,
)
from edgevit.backends.tvm.codegen.schedules import Isa, Tile, pad
from edgevit.backends.tvm.codegen.threads import (
    Part,
    parts,
    units_of,
)
from edgevit.backends.tvm.kernels.heads import Head, Heads, attention_threads, block_rows


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """One head's keys and values, packed as `Dot.pack` does it, and its queries, with a scale and a length per token.

    Of what is behind `bias`, each thread has a copy, `distance` behind the one before.

    Attributes:
        keys, values: words of one panel behind the other.
        query: `[rows, words]` in blocks.
        key_scale, key_length: per key; a length is that of what the integers stand for.
        query_scale, query_length: per query; here that of the integers.
        value_scale, value_start: per column; the latter int32, what sums start from.
        depth: of the second product, tokens padded to whole steps.
        bias: int16 per key.
        factor: int32 per key, of 2^31: from sums to 16 bits.
        scores: int16 in blocks, `[rows, words]`.
        shares: int8 in blocks, `[rows, words]`.
        inverse: per row, 1 / sum.
    """

    keys: Place
    values: Place
    query: Place
    key_scale: Place
    key_length: Place
    query_scale: Place
    query_length: Place
    value_scale: Place
    value_start: Place
    depth: int
    bias: Place
    factor: Place
    scores: Place
    shares: Place
    inverse: Place
    distance: int

    def of(self, part: Part) -> Scratch:
        """Return the places of one thread."""
        own = ("bias", "factor", "scores", "shares", "inverse")
        return replace(self, **{name: getattr(self, name).moved(part.index * self.distance) for name in own})


def scratch(arena: Arena, heads: Heads, dot: Dot, tile: Tile, isa: Isa) -> Scratch:
    """Return places for one head at a time."""
    tokens, rows, together = heads.key.rows, heads.query.rows, dot.together
    # Whole blocks of 16 columns: of scores, and of what belongs to keys.
    columns, depth, block = (
        pad(tokens, 16),
        pad(tokens, dot.depth),
        pad(block_rows(isa, heads, tile, whole=True), together),
    )
    width = pad(heads.stride, dot.depth)
    shared_places = {
        "keys": arena.place(1, pad(tokens, LANES) * width // WORD),
        "values": arena.place(1, heads.stride * depth // WORD),
        "query": arena.place(pad(rows, together), width // WORD),
        "key_scale": arena.place(1, columns),
        "key_length": arena.place(1, columns),
        "query_scale": arena.place(1, pad(rows, LANES)),
        "query_length": arena.place(1, pad(rows, LANES)),
        "value_scale": arena.place(1, heads.stride),
        "value_start": arena.place(1, heads.stride),
    }
    begin = arena.mark()
    own = {
        "bias": arena.place(1, columns // 2),
        "factor": arena.place(1, columns),
        "scores": arena.place(block, columns // 2),
        "shares": arena.place(block, max(columns, depth) // WORD),
        "inverse": arena.place(1, pad(block, LANES)),
    }
    distance = arena.repeat(begin, parts(attention_threads(isa, heads), -(-rows // block)))
    return Scratch(**shared_places, **own, depth=depth, distance=distance)


class NeonHead(Head):
    """One head, whose queries are packed too, and rows of all of them in blocks."""

    def __init__(
        self,
        code: Code,
        memory: Any,
        values: Any,
        heads: Heads,
        column: Any,
        target: Matrix,
        work: Scratch,
        tile: Tile,
        dot: Dot,
        threads: int,
        bias: Place | None,
    ) -> None:
        super().__init__(code, memory, values, heads, column, target, work, tile, dot.lanes, threads, bias)
        self.dot = dot
        self.together = dot.together
        self.words = BLOCK // dot.together  # of a row in a block
        self.unit: Any = None
        # Scores of a block of this many columns are a block.
        self.columns = LANES * self.words

    @property
    def there(self) -> Any:
        return self.heads.key.rows if self.keys is None else self.keys

    def keep(self, place: Place, row: Any, values: Any) -> None:
        """Store a value per row of a block."""
        count = self.together
        self.code.store_vector(self.memory, place.offset + row, lanes_of(values, *range(count)), count)

    def steps(self) -> Any:
        """Return the steps of the second product."""
        return self.work.depth // self.dot.depth if self.keys is None else units_of(self.keys, self.dot.depth)

    def score(self, row: Any, block: Any) -> Any:
        """Return where the scores of a block of rows and columns lie, 16 of them."""
        stride = self.work.scores.stride * self.together
        return self.work.scores.offset + tirx.floordiv(integer(row), integer(self.together)) * stride + block * 8
