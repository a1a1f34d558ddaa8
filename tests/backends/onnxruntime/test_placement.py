"""The replay of the arena: against every path walked one by one, and on frames worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.backends.onnxruntime import placement
from edgevit.backends.onnxruntime.frames import ALIGN_BYTES, Frame, Step
from edgevit.backends.onnxruntime.placement import Replay, room_needed
from edgevit.backends.onnxruntime.stages import Stage
from edgevit.errors import BoundError

K = ALIGN_BYTES


def frame(steps: list[Step], results: tuple[tuple[str, int], ...] = ()) -> Frame:
    return Frame(steps=tuple(steps), values=MappingProxyType({}), results=results, copied=0)


def fits(main: Frame, room: int, stages: Sequence[Stage] = ()) -> bool:
    return Replay(main, stages).fits(room)


def test_a_gap_too_small_for_the_next_buffer_needs_room_beside_it() -> None:
    # a b | a goes, leaving 2 in front of b; c needs 3: live is 1 + 3, but c only fits behind b.
    steps = [
        Step("one", (("a", 2 * K), ("b", K)), ("a",)),
        Step("two", (("c", 3 * K),), ("b", "c")),
    ]
    assert not fits(frame(steps), 4 * K)
    assert fits(frame(steps), 6 * K)
    assert room_needed(frame(steps), 4 * K) == 6 * K


def test_the_smallest_gap_that_holds_a_buffer_is_taken() -> None:
    # Gaps of 3 (front) and 1 (between): d of 1 goes into the small one, so e of 3 still fits in front.
    steps = [
        Step("one", (("a", 3 * K), ("x", K), ("b", K), ("y", K)), ("a", "b")),
        Step("two", (("d", K), ("e", 3 * K)), ()),
    ]
    assert fits(frame(steps), 6 * K)


def test_outputs_of_the_run_before_may_be_held() -> None:
    steps = [Step("one", (("big", 3 * K),), ()), Step("two", (("y", K),), ("big",))]
    assert fits(frame(steps), 4 * K)
    # Held at 3, y leaves 3 in front of it for big and nothing for the next y.
    assert not fits(frame(steps, (("y", K),)), 4 * K)
    assert fits(frame(steps, (("y", K),)), 5 * K)


def test_more_than_twice_the_live_bytes_is_refused() -> None:
    with pytest.raises(BoundError, match="more than twice"):
        room_needed(frame([Step("one", (("a", 5 * K),), ("a",))]), 2 * K)


def test_an_empty_tensor_takes_no_place() -> None:
    # Gaps of 2 (front) and 1 (behind p): were the empty one at the start of the second, 4 would not fit when p goes.
    steps = [
        Step("one", (("x", 2 * K), ("p", K)), ("x",)),
        Step("two", (("none", 0),), ("p",)),
        Step("three", (("c", 4 * K),), ("none", "c")),
    ]
    assert fits(frame(steps), 4 * K)


sizes = st.integers(1, 6).map(lambda n: n * K)


@st.composite
def bodies(draw: st.DrawFn, name: str) -> Frame:
    """Up to three buffers that overlap in time, all freed at the end."""
    chosen = draw(st.lists(sizes, max_size=3))
    steps = [
        Step(f"{name}{i}", ((f"{name}{i}", size),), (f"{name}{i - 1}",) if i else ()) for i, size in enumerate(chosen)
    ]
    return frame([*steps, Step(f"{name}_end", (), (f"{name}{len(chosen) - 1}",))])


@st.composite
def gated_frames(draw: st.DrawFn) -> Frame:
    """Ifs in sequence, each turning the stream into a new buffer and leaving a small one behind to the end."""
    steps, count = [Step("stem", (("x0", draw(sizes)),), ())], draw(st.integers(1, 4))
    for i in range(count):
        pair = (draw(bodies(f"t{i}_")), draw(bodies(f"e{i}_")))
        steps.append(Step(f"if{i}", ((f"x{i + 1}", draw(sizes)),), (f"x{i}",), pair))
        steps.append(Step(f"gate{i}", ((f"g{i}", K),), ()))
    gone = (f"x{count}", *(f"g{i}" for i in range(count)))
    return frame([*steps, Step("head", (("y", K),), gone)], (("y", K),))


def walk(main: Frame, choices: tuple[int, ...], room: int) -> bool:
    """One path of one run, in a plain array of units of the arena."""
    cells: list[str | None] = [None] * (room // K)

    def take(step: Step) -> bool:
        for name, size in step.allocates:
            gaps, start = [], 0
            for end, cell in enumerate([*cells, "end"]):
                if cell is not None:
                    gaps.append((end - start, start))
                    start = end + 1
            fitting = [gap for gap in gaps if gap[0] >= size // K]
            if not fitting:
                return False
            at = min(fitting)[1]
            cells[at : at + size // K] = [name] * (size // K)
        return True

    def drop(step: Step) -> None:
        cells[:] = [None if cell in step.frees else cell for cell in cells]

    ifs = iter(choices)
    for step in main.steps:
        if not take(step):
            return False
        for inner in step.bodies[next(ifs)].steps if step.bodies else ():
            if not take(inner):
                return False
            drop(inner)
        drop(step)
    return True


@settings(max_examples=150, deadline=None)
@given(gated_frames(), st.integers(4, 30))
def test_merged_placements_agree_with_every_path_walked_alone(main: Frame, units: int) -> None:
    alone = Frame(steps=main.steps, values=main.values, results=(), copied=0)
    ifs = sum(bool(step.bodies) for step in main.steps)
    # With no outputs held, every run starts empty, so one run per path is all there is.
    ended = [walk(alone, choices, units * K) for choices in product((0, 1), repeat=ifs)]
    last = Step("drop", (), ("y",))
    assert fits(frame([*alone.steps, last]), units * K) == all(ended)


@settings(max_examples=50, deadline=None)
@given(gated_frames())
def test_the_room_holds_every_path_and_is_not_below_what_is_live(main: Frame) -> None:
    live = max(
        own + max((body.peak for body in step.bodies), default=0)
        for own, step in zip(main.live, main.steps, strict=True)
    )
    try:
        room = room_needed(main, live)
    except BoundError:
        return
    assert room >= live
    ifs = sum(bool(step.bodies) for step in main.steps)
    assert all(walk(main, choices, room) for choices in product((0, 1), repeat=ifs))


@st.composite
def counted_frames(draw: st.DrawFn) -> tuple[Frame, tuple[Stage, ...]]:
    """The same steps with sizes of several runs, cut into stages; what a stage can go on with depends on the last."""
    main = draw(gated_frames())
    places = sorted(draw(st.sets(st.integers(1, len(main.steps) - 1), min_size=1, max_size=3)))
    stages, ways = [], 1
    for start, stop in zip([0, *places], [*places, len(main.steps)], strict=True):
        count = draw(st.integers(1, 3))
        variants = tuple(tuple(draw(resized(step)) for step in main.steps[start:stop]) for _ in range(count))
        some = st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True)
        entries = tuple(tuple(draw(some)) for _ in range(ways))
        ways = draw(st.integers(1, 2))
        ends = tuple(draw(st.integers(0, ways - 1)) for _ in range(count))
        stages.append(Stage(variants=variants, counts=(0,) * count, entries=entries, ends=ends))
    return main, tuple(stages)


@st.composite
def resized(draw: st.DrawFn, step: Step) -> Step:
    """A step with other sizes, some of them none; those of bodies as they are."""
    return replace(step, allocates=tuple((name, draw(st.integers(0, 6)) * K) for name, _ in step.allocates))


def sequences(stages: Sequence[Stage]) -> list[list[Step]]:
    """The steps of every sequence of variants."""
    found: list[tuple[list[Step], int]] = [([], 0)]
    for stage in stages:
        found = [
            ([*steps, *stage.variants[variant]], stage.ends[variant])
            for steps, way in found
            for variant in stage.entries[way]
        ]
    return [steps for steps, _ in found]


@settings(max_examples=100, deadline=None)
@given(counted_frames(), st.sampled_from([1, 3, 4000]))
def test_stages_side_by_side_agree_with_every_run_walked_alone(
    drawn: tuple[Frame, tuple[Stage, ...]], at_once: int
) -> None:
    main, stages = drawn
    ifs = sum(bool(step.bodies) for step in main.steps)
    alone = [frame(steps) for steps in sequences(stages)]
    least = max(run.peak for run in alone) // K
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(placement, "AT_ONCE", at_once << ifs)
        for units in range(least, least + 8):
            ended = (walk(run, choices, units * K) for run in alone for choices in product((0, 1), repeat=ifs))
            assert fits(main, units * K, stages) == all(ended)
