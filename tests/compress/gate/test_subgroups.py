"""Every sample in one group, of the size that was promised, for any batch."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.compress.gate.subgroups import GroupKind, Groups, parse_groups, sizes, split
from edgevit.errors import TrainingError

BATCHES = st.integers(1, 600)
SEEDS = st.lists(st.integers(0, 2**40), min_size=1, max_size=3).map(tuple)


@st.composite
def any_groups(draw: st.DrawFn) -> Groups:
    low = draw(st.integers(1, 80))
    high = draw(st.integers(low, 300))
    return Groups(kind=draw(st.sampled_from(get_args(GroupKind))), size=draw(st.integers(1, 300)), low=low, high=high)


@given(any_groups(), BATCHES, SEEDS)
def test_every_sample_is_in_exactly_one_group(groups: Groups, batch: int, seed: tuple[int, ...]) -> None:
    every = sizes(groups, batch, seed)
    assert sum(every) == batch and min(every) >= 1
    numbers = split(groups, batch, seed)
    assert numbers.shape == (batch,) and numbers.dtype == np.int64
    # Runs in the order of the batch, numbered without a gap, as long as `sizes` says.
    assert numbers[0] == 0 and set(np.diff(numbers)) <= {0, 1}
    assert tuple(np.bincount(numbers)) == every


@given(any_groups(), BATCHES, SEEDS)
def test_a_split_depends_on_its_arguments_alone(groups: Groups, batch: int, seed: tuple[int, ...]) -> None:
    first = split(groups, batch, seed)
    np.random.default_rng().random()
    assert np.array_equal(first, split(groups, batch, seed))


@given(any_groups())
def test_groups_read_back_from_their_text(groups: Groups) -> None:
    again = parse_groups(str(groups))
    assert str(again) == str(groups)
    assert sizes(again, 97, (1, 2)) == sizes(groups, 97, (1, 2))


@given(BATCHES, st.integers(1, 700))
def test_average_groups_have_one_size_but_the_last(batch: int, size: int) -> None:
    *whole, last = sizes(Groups(kind="average", size=size), batch, (0,))
    assert set(whole) <= {size} and 1 <= last <= size


@given(BATCHES, st.integers(1, 80), st.integers(0, 80), SEEDS)
def test_random_groups_stay_in_their_range_but_the_last(batch: int, low: int, more: int, seed: tuple[int, ...]) -> None:
    *whole, last = sizes(Groups(kind="random", low=low, high=low + more), batch, seed)
    assert all(low <= size <= low + more for size in whole) and 1 <= last <= low + more


@given(BATCHES)
def test_halving_takes_half_of_what_is_left(batch: int) -> None:
    every = sizes(Groups(kind="halving"), batch, (0,))
    left = batch
    for size in every:
        assert size == left - left // 2
        left -= size
    assert not left and every[-1] == 1 and len(every) == batch.bit_length()


@given(BATCHES, SEEDS)
def test_recursive_groups_are_halves_of_halves(batch: int, seed: tuple[int, ...]) -> None:
    reached = {batch}
    for _ in range(batch.bit_length()):
        reached |= {size // 2 for size in reached if size > 1} | {(size + 1) // 2 for size in reached}
    assert set(sizes(Groups(kind="recursive"), batch, seed)) <= reached


def test_the_sizes_that_the_notes_of_the_method_name() -> None:
    def of(text: str, batch: int) -> tuple[int, ...]:
        return sizes(parse_groups(text), batch, (0,))

    assert of("halving", 256) == (128, 64, 32, 16, 8, 4, 2, 1, 1)
    assert of("average 32", 256) == (32,) * 8
    assert of("average 32", 70) == (32, 32, 6)
    assert of("average 300", 256) == of("batch", 256) == (256,)
    assert of("sample", 5) == of("average 1", 5) == of("random 1 1", 5) == (1, 1, 1, 1, 1)
    assert all(of(str(Groups(kind=kind, size=1)), 1) == (1,) for kind in get_args(GroupKind))


def test_recursive_groups_meet_every_size_equally_often() -> None:
    """A sample is in a group of 16, 8, 4, 2 and 1 with the same probability, and so is each place in the batch."""
    steps, batch = 4000, 16
    met: Counter[int] = Counter()
    first: Counter[int] = Counter()
    for step in range(steps):
        every = sizes(Groups(kind="recursive"), batch, (7, step))
        met.update(every)
        first[every[0]] += 1
    for size in (16, 8, 4, 2, 1):
        share = met[size] * size / (steps * batch)
        assert share == pytest.approx(1 / 5, abs=0.03)  # four standard deviations of 4000 draws
        assert first[size] / steps == pytest.approx(1 / 5, abs=0.03)


def test_random_sizes_are_drawn_evenly() -> None:
    drawn = Counter(sizes(Groups(kind="random", low=3, high=6), 30_000, (1,))[:-1])
    assert set(drawn) == {3, 4, 5, 6}
    assert all(n / drawn.total() == pytest.approx(1 / 4, abs=0.025) for n in drawn.values())


@pytest.mark.parametrize("kind", ["random", "recursive"])
def test_each_part_of_the_seed_moves_the_draw(kind: GroupKind) -> None:
    groups = Groups(kind=kind)
    drawn = {sizes(groups, 256, seed) for seed in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(drawn) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "every",
        "Batch",
        "batch 3",
        "sample 1",
        "average",
        "average 0",
        "average -8",
        "average 8 8",
        "average 8.5",
        "average ٣",
        "average " + "9" * 5000,
        "random",
        "random 4",
        "random 0 4",
        "random 8 4",
        "random 1 2 3",
        "32",
    ],
)
def test_other_text_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(TrainingError, match=r"allowed: batch, average N, random LO HI, .*'average 32'") as refused:
        parse_groups(text)
    assert repr(text) in str(refused.value)


def test_groups_that_cannot_be_are_refused_however_they_are_made() -> None:
    for wrong in ({"kind": "average"}, {"kind": "random", "low": 9, "high": 3}, {"kind": "other"}):
        with pytest.raises(TrainingError, match="no such gate groups"):
            Groups(**wrong)


@pytest.mark.parametrize("batch", [0, -1])
def test_an_empty_batch_is_a_fault_of_the_caller(batch: int) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        split(Groups(kind="batch"), batch, (0,))
