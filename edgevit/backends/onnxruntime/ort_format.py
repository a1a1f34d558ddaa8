"""Make an `.ort` file reproducible: ONNX Runtime writes one of its tables in the order of a randomly seeded hash map.

The table lists, per operator, which inputs and outputs each of its type constraints covers. An `.ort` file is a
flatbuffer: the table is written again in sorted order at the end of the file, the root is pointed at it, and the old
bytes are zeroed. Schema: `KernelTypeStrResolver` in onnxruntime/core/flatbuffers/schema/ort.fbs (release 1.31).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Slots of the tables, as vtable offsets: 4 + 2 * field number.
FIRST, SECOND, FOURTH = 4, 6, 10
ALIGN_BYTES = 16

Entry = tuple[bytes, tuple[tuple[bytes, tuple[tuple[int, int], ...]], ...]]


def canonical(file: bytes) -> bytes:
    """Return the same model with the table in sorted order: equal models give equal bytes."""
    from flatbuffers import encode, packer

    data = bytearray(file)
    session = _table(data, encode.Get(packer.uoffset, data, 0))
    slot = session.Pos + session.Offset(FOURTH)
    model = _table(data, session.Indirect(session.Pos + session.Offset(SECOND)))
    resolver = _table(data, session.Indirect(slot))
    block = _serialise(_entries(resolver))
    # Tables are written back to front, so all that lies between the table and the model belongs to the table.
    start, end = resolver.Pos, min(model.Pos, model.Pos - encode.Get(packer.soffset, data, model.Pos))
    data[start:end] = bytes(end - start)
    data += bytes(-len(data) % ALIGN_BYTES)
    root = len(data) + encode.Get(packer.uoffset, block, 0)
    data += block
    encode.Write(packer.uoffset, data, slot, root - slot)
    return bytes(data)


def _table(data: bytearray, position: int) -> Any:
    from flatbuffers.table import Table

    return Table(data, position)


def _children(table: Any, slot: int) -> Iterator[Any]:
    offset = table.Offset(slot)
    for index in range(table.VectorLen(offset) if offset else 0):
        yield _table(table.Bytes, table.Indirect(table.Vector(offset) + 4 * index))


def _entries(resolver: Any) -> list[Entry]:
    from flatbuffers.number_types import Int8Flags, Uint32Flags

    def scalar(table: Any, slot: int, flags: Any) -> int:
        offset = table.Offset(slot)
        return int(table.Get(flags, table.Pos + offset)) if offset else 0

    def name(table: Any) -> bytes:
        return bytes(table.String(table.Pos + table.Offset(FIRST)))

    entries = []
    for operator in _children(resolver, FIRST):
        constraints = []
        for constraint in _children(operator, SECOND):
            covered = _children(constraint, SECOND)
            arguments = tuple((scalar(a, FIRST, Int8Flags), scalar(a, SECOND, Uint32Flags)) for a in covered)
            constraints.append((name(constraint), arguments))
        entries.append((name(operator), tuple(sorted(constraints))))
    return sorted(entries)


def _serialise(entries: list[Entry]) -> bytes:
    from flatbuffers import Builder

    builder = Builder(4096)

    def vector(children: list[int]) -> int:
        builder.StartVector(4, len(children), 4)
        for child in reversed(children):
            builder.PrependUOffsetTRelative(child)
        return int(builder.EndVector())

    def named(name: bytes, children: list[int]) -> int:
        key, held = builder.CreateString(name), vector(children)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, held, 0)
        return int(builder.EndObject())

    def argument(kind: int, index: int) -> int:
        builder.StartObject(2)
        builder.PrependInt8Slot(0, kind, 0)
        builder.PrependUint32Slot(1, index, 0)
        return int(builder.EndObject())

    operators = []
    for operator, constraints in entries:
        held = [named(constraint, [argument(*a) for a in arguments]) for constraint, arguments in constraints]
        operators.append(named(operator, held))
    table = vector(operators)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, table, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())
