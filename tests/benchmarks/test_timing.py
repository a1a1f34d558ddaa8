import math
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import WARMUP_ROUNDS, Times, interleave, median_interval, ratio


def times(*cpu_ms: float) -> Times:
    return Times(cpu_ms=cpu_ms, wall_ms=cpu_ms)


def test_every_candidate_runs_once_per_round_on_the_rounds_image() -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str, index: int) -> None:
        seen.append((name, index))

    names = ("a", "b", "c")
    measured = interleave({name: partial(note, name) for name in names}, images=4, rounds=6)
    rounds = [seen[k : k + 3] for k in range(0, len(seen), 3)]
    assert len(rounds) == WARMUP_ROUNDS + 6
    for index, one in enumerate(rounds):
        assert sorted(name for name, _ in one) == list(names)
        assert {image for _, image in one} == {(index - WARMUP_ROUNDS) % 4}
    assert len({tuple(name for name, _ in one) for one in rounds}) > 1, "the order must vary"
    assert all(len(t.cpu_ms) == len(t.wall_ms) == 6 for t in measured.values())


def test_work_shows_in_cpu_time_and_sleep_only_in_wall_time() -> None:
    import time

    def work(_: int) -> None:
        end = time.process_time() + 0.003
        while time.process_time() < end:
            pass

    measured = interleave({"work": work, "sleep": lambda _: time.sleep(0.003)}, images=1, rounds=5)
    assert min(measured["work"].cpu_ms) >= 3.0
    assert measured["sleep"].median_ms < 1.5
    assert min(measured["sleep"].wall_ms) >= 3.0


def test_a_ratio_is_paired() -> None:
    # The machine slowed down tenfold half way: medians of each would be far apart, the quotient never moved.
    base = times(1, 1, 1, 10, 10, 10, 10)
    slow = times(2, 2, 2, 20, 20, 20, 20)
    assert ratio(slow, base).value == 2
    assert (ratio(slow, base).low, ratio(slow, base).high) == (2, 2)


@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=200, unique=True))
def test_the_interval_holds_95_percent_and_no_narrower_one_does(values: list[float]) -> None:
    found, ordered = median_interval(values), sorted(values)
    rank, n = ordered.index(found.low), len(values)
    assert ordered.index(found.high) == n - 1 - rank
    assert found.low <= found.value <= found.high

    def coverage(r: int) -> float:
        return 1.0 - 2 * float(sum(math.comb(n, k) for k in range(r + 1)) / 2**n)

    assert coverage(rank) >= 0.95 - 1e-12
    assert coverage(rank + 1) < 0.95 + 1e-12


def test_few_values_give_their_whole_range() -> None:
    assert (median_interval([3, 1, 2]).low, median_interval([3, 1, 2]).high) == (1, 3)
