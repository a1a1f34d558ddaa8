"""How much room the arena needs for the gaps between tensors, over every gate path: its placement, replayed.

ONNX Runtime's arena (bfc_arena.cc), given its room in one piece and set to split chunks to size, puts a buffer at the
lowest address of the smallest gap that holds it, and merges gaps as buffers are freed. So where buffers lie depends
only on the order of allocations, which the frames give. Paths differ only inside an `If`; after it, both bodies'
tensors are gone, and most paths have led to the same placement. The replay carries the set of distinct placements
through the graph, so it covers all 2^gates paths without walking each, and then run after run, with the previous
run's outputs still held or not, until no new placement appears.

Where sizes follow the image there is a frame for every combination of them, and each has to fit. There a run starts
from an arena without outputs of earlier ones, which the runner copies. Of too many combinations less is known: a buffer
finds room wherever what is free is more than all gaps would hold if each were just too small for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

from edgevit.backends.onnxruntime.frames import ALIGN_BYTES, Frame, Step
from edgevit.errors import BoundError

# A placement: (offset, bytes, buffer), sorted.
Placement = tuple[tuple[int, int, str], ...]
MAX_PLACEMENTS = 2_000
STEPS = 64


class _NoRoomError(Exception):
    pass


def room_needed(frames: Sequence[Frame], live_bytes: int) -> int:
    """Bytes in one piece in which every gate path of every run finds room; at least `live_bytes`, the most in use.

    `frames` are those of all sizes that there can be; of several each run starts afresh.

    More room can place worse (best fit is not monotone), so each candidate is replayed in full; the smallest of the
    candidates, in steps of 1/64 of `live_bytes`, that holds everything is returned.

    Raises:
        BoundError: not even twice the live bytes do.
    """
    step = max(live_bytes // STEPS // ALIGN_BYTES, 1) * ALIGN_BYTES
    for room in range(live_bytes, 2 * live_bytes + step, step):
        if all(fits(main, room, held=len(frames) == 1) for main in frames):
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


def fits(main: Frame, room: int, *, held: bool = True) -> bool:
    """Return whether `room` bytes in one piece hold every gate path, run after run.

    `held`: the caller may still have a run's outputs while the next goes on.
    """
    fresh: Placement = ((0, main.copied, "copied"),) if main.copied else ()
    seen, waiting = {fresh}, [fresh]
    try:
        while waiting:
            for after in _run(main, waiting.pop(), room):
                for start in _starts(after, main, fresh) if held else ():
                    if start not in seen:
                        seen.add(start)
                        waiting.append(start)
                if len(seen) > MAX_PLACEMENTS:
                    return False
    except _NoRoomError:
        return False
    return True


def _starts(after: Placement, main: Frame, fresh: Placement) -> set[Placement]:
    """Return placements the next run may start from: any part of this run's outputs still held by the caller."""
    names = [name for name, _ in main.results]
    kept = chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))
    return {tuple(sorted((*fresh, *((o, s, f"held {n}") for o, s, n in after if n in part)))) for part in kept}


def _run(main: Frame, start: Placement, room: int) -> set[Placement]:
    """Return placements that a run from `start` can end in."""
    placements = {start}
    for step in main.steps:
        if not step.late:
            placements = {_allocate(p, step.allocates, room) for p in placements}
        if step.bodies:
            late = step.allocates if step.late else ()
            placements = {_body(p, body, room, late) for p in placements for body in step.bodies}
        placements = {_free(p, step) for p in placements}
        if len(placements) > MAX_PLACEMENTS:
            raise _NoRoomError
    return placements


def _body(placement: Placement, body: Frame, room: int, late: tuple[tuple[str, int], ...]) -> Placement:
    for step in body.steps:
        outputs = tuple(late[index] for index in step.makes) if late else ()
        placement = _free(_allocate(placement, (*step.allocates, *outputs), room), step)
    return placement


def _allocate(placement: Placement, buffers: tuple[tuple[str, int], ...], room: int) -> Placement:
    for name, size in buffers:
        best, offset, end = room + 1, -1, 0
        for start, held, _ in (*placement, (room, 0, "")):
            if size <= start - end < best:
                best, offset = start - end, end
            end = start + held
        if offset < 0:
            raise _NoRoomError
        placement = tuple(sorted((*placement, (offset, size, name))))
    return placement


def _free(placement: Placement, step: Step) -> Placement:
    return tuple(entry for entry in placement if entry[2] not in step.frees) if step.frees else placement
