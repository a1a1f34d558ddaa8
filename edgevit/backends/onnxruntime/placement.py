"""How much room the arena needs for the gaps between tensors, over every gate path: its placement, replayed.

ONNX Runtime's arena (bfc_arena.cc), given its room in one piece and set to split chunks to size, puts a buffer at the
lowest address of the smallest gap that holds it, and merges gaps as buffers are freed. So where buffers lie depends
only on the order of allocations, which the frames give. Paths differ only inside an `If`; after it, both bodies'
tensors are gone, and most paths have led to the same placement. The replay carries the distinct placements through the
graph, so it covers all 2^gates paths without walking each, and then run after run, with the previous run's outputs
still held or not, until no new placement appears.

Where sizes follow the image, runs part at every count as well, and their placements, of other sizes, are replayed side
by side. There a run starts from an arena without outputs of earlier ones, which the runner copies. Of too many runs
less is known: a buffer finds room wherever what is free is more than all gaps would hold if each were just too small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from edgevit.backends.onnxruntime.frames import ALIGN_BYTES, Frame, Step
from edgevit.backends.onnxruntime.stages import Stage
from edgevit.errors import BoundError

MAX_PLACEMENTS = 20_000
AT_ONCE = 4_000  # placements that are replayed side by side
STEPS = 64
START, END, NAME = range(3)


class _NoRoomError(Exception):
    pass


def room_needed(main: Frame, live_bytes: int, stages: Sequence[Stage] = ()) -> int:
    """Bytes in one piece in which every gate path of every run finds room; at least `live_bytes`, the most in use.

    `stages` are those of a model whose sizes follow the image, each run of which starts afresh.

    More room can place worse (best fit is not monotone), so each candidate is replayed in full; the smallest of the
    candidates, in steps of 1/64 of `live_bytes`, that holds everything is returned.

    Raises:
        BoundError: not even twice the live bytes do.
    """
    step = max(live_bytes // STEPS // ALIGN_BYTES, 1) * ALIGN_BYTES
    replay = Replay(main, stages)
    for room in range(live_bytes, 2 * live_bytes + step, step):
        if replay.fits(room):
            return room
    raise BoundError(f"the arena's placement needs more than twice the {live_bytes} bytes that are live at once")


def room_for_any(main: Frame) -> int:
    """Return bytes in one piece that are enough for buffers of at most these sizes, wherever they come to lie."""
    held: dict[str, int] = {"copied": main.copied} | {f"held {name}": size for name, size in main.results}
    most = 0
    for step in main.steps:
        most = max([most, *(_any(body.steps, dict(held) | dict(step.allocates)) for body in step.bodies)])
        most = max(most, _any((step,), held))
    return most


def _any(steps: Sequence[Step], held: dict[str, int]) -> int:
    most = 0
    for step in steps:
        for name, size in step.allocates:
            most = max(most, sum(held.values()) + (len(held) + 1) * size)
            held[name] = size
        for name in step.frees:
            held.pop(name, None)
    return most


@dataclass(frozen=True)
class _Move:
    """One step of many runs at once: sizes are `[variants, buffers]`, those of each variant."""

    names: tuple[int, ...]
    sizes: np.ndarray
    frees: tuple[int, ...]
    bodies: tuple[tuple[_Move, ...], ...]
    late: bool
    makes: tuple[int, ...]


@dataclass(frozen=True)
class _Placements:
    """Where buffers lie, distinct placements beside each other.

    Attributes:
        held: start, end and name of every buffer, by address, and of the room's end: `[placements, buffers + 1, 3]`.
            All hold the same buffers.
        variants: `[placements]`, whose sizes each goes on with.
    """

    held: np.ndarray
    variants: np.ndarray

    def __len__(self) -> int:
        return len(self.held)


class Replay:
    """The runs of a model: run after run of a fixed one, or one run of every stage of one that follows the image."""

    def __init__(self, main: Frame, stages: Sequence[Stage] = ()) -> None:
        self._main, self._stages = main, stages
        gates = sum(bool(step.bodies) for step in main.steps)
        self._at_once = AT_ONCE >> min(gates, 6)  # an If leaves up to twice as many
        self._ids: dict[str, int] = {}
        self._moves = [self._moved(stage.variants) for stage in stages] or [self._moved([main.steps])]

    def fits(self, room: int) -> bool:
        """Return whether `room` bytes in one piece hold every gate path; outputs of a fixed model may be held."""
        fresh = [[0, self._main.copied, self._id("copied")]] if self._main.copied else []
        start = _Placements(np.array([[*fresh, [room, room, self._id("end")]]]), np.zeros(1, dtype=np.int64))
        try:
            (self._one_run if self._stages else self._all_runs)(start, room)
        except _NoRoomError:
            return False
        return True

    def _one_run(self, before: _Placements, room: int, index: int = 0) -> None:
        """Replay a stage and all that follow it, a few placements each time, so that memory stays small."""
        stage = self._stages[index]
        entries = [np.array(stage.entries[way]) for way in before.variants]
        rows, variants = np.repeat(np.arange(len(before)), list(map(len, entries))), np.concatenate(entries)
        for part in range(0, len(rows), self._at_once):
            chosen = slice(part, part + self._at_once)
            now = _walk(self._moves[index], _Placements(before.held[rows[chosen]], variants[chosen]), room)
            if index + 1 < len(self._stages):
                self._one_run(_distinct(now.held, np.array(stage.ends)[now.variants]), room, index + 1)

    def _all_runs(self, start: _Placements, room: int) -> None:
        seen, waiting = {start.held.tobytes()}, [start]
        while waiting:
            after = _walk(self._moves[0], waiting.pop(), room)
            for kept in self._starts(after):
                new = [row for row in kept.held if row.tobytes() not in seen]
                seen.update(row.tobytes() for row in new)
                if new:
                    waiting.append(_Placements(np.stack(new), np.zeros(len(new), dtype=np.int64)))
            if len(seen) > MAX_PLACEMENTS:
                raise _NoRoomError

    def _starts(self, after: _Placements) -> Iterator[_Placements]:
        """Yield placements the next run may start from: any part of this run's outputs still held by the caller."""
        names = [name for name, _ in self._main.results]
        fresh = [self._id("copied"), self._id("end")]
        for part in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1)):
            renamed = {self._id(name): self._id(f"held {name}") for name in part}
            kept = np.flatnonzero(np.isin(after.held[..., NAME], [*fresh, *renamed]))
            held = _taken(after.held, kept.reshape(len(after), -1))
            for old, new in renamed.items():
                held[..., NAME][held[..., NAME] == old] = new
            yield _distinct(held, after.variants)

    def _moved(self, variants: Sequence[Sequence[Step]]) -> tuple[_Move, ...]:
        moves = []
        for index, step in enumerate(variants[0]):
            same = [steps[index] for steps in variants]
            sizes = [[size for _, size in each.allocates] for each in same]
            bodies = range(len(step.bodies))
            moves.append(
                _Move(
                    names=tuple(self._id(name) for name, _ in step.allocates),
                    sizes=np.array(sizes, dtype=np.int64).reshape(len(variants), len(step.allocates)),
                    frees=tuple(self._id(name) for name in step.frees),
                    bodies=tuple(self._moved([each.bodies[body].steps for each in same]) for body in bodies),
                    late=step.late,
                    makes=step.makes,
                )
            )
        return tuple(moves)

    def _id(self, name: str) -> int:
        return self._ids.setdefault(name, len(self._ids))


def _walk(moves: Sequence[_Move], now: _Placements, room: int) -> _Placements:
    for move in moves:
        if not move.late:
            now = _allocate(now, move, range(len(move.names)), room)
        if move.bodies:
            ways = [_body(body, now, move, room) for body in move.bodies]
            now = _distinct(np.concatenate([way.held for way in ways]), np.concatenate([way.variants for way in ways]))
        now = _free(now, move.frees)
    return now


def _body(moves: Sequence[_Move], now: _Placements, outer: _Move, room: int) -> _Placements:
    for move in moves:
        now = _allocate(now, move, range(len(move.names)), room)
        now = _free(_allocate(now, outer, move.makes if outer.late else (), room), move.frees)
    return now


def _allocate(now: _Placements, move: _Move, buffers: Sequence[int], room: int) -> _Placements:
    for buffer in buffers:
        size, held = move.sizes[now.variants, buffer], now.held
        count, there = held.shape[:2]
        before = np.zeros((count, there), dtype=np.int64)
        before[:, 1:] = held[:, :-1, END]
        gaps = held[..., START] - before
        gaps[gaps < size[:, None]] = room + 1
        at, rows = gaps.argmin(axis=1), np.arange(count)
        if (gaps[rows, at] > room).any():
            raise _NoRoomError
        start = before[rows, at]
        at[size == 0], start[size == 0] = there - 1, room  # nothing is placed for an empty tensor
        places = np.arange(there + 1)
        held = _taken(held, rows[:, None] * there + places - (places > at[:, None]))
        held[rows, at] = np.stack([start, start + size, np.full(count, move.names[buffer])], axis=1)
        now = _Placements(held, now.variants)
    return now


def _free(now: _Placements, names: Sequence[int]) -> _Placements:
    if not names:
        return now
    kept = np.logical_and.reduce([now.held[..., NAME] != name for name in names])
    return _Placements(_taken(now.held, np.flatnonzero(kept).reshape(len(now), -1)), now.variants)


def _taken(held: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the entries at places of the flattened list, `[placements, buffers, 3]`."""
    return held.reshape(-1, 3).take(places, axis=0)


def _distinct(held: np.ndarray, variants: np.ndarray) -> _Placements:
    """Return each placement once for each variant.

    Raises:
        _NoRoomError: there are too many to go on with.
    """
    rows = np.concatenate([variants[:, None], held.reshape(len(held), -1)], axis=1)
    rows = np.unique(rows, axis=0)
    if len(rows) > MAX_PLACEMENTS:
        raise _NoRoomError
    return _Placements(rows[:, 1:].reshape(len(rows), -1, 3), rows[:, 0])
